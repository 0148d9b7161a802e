#!/usr/bin/env bash
# Keeps one run going on a TPU that may be taken away: makes the TPU, runs main, and starts both again.
# Needs:  what launch/tpu_vm.sh needs, RUN_ID, RUNS and NFS among it: every start is of the same RUN_ID, so each goes
#         on where the one before it was. Run it on a machine that stays on.
# Call:   NAME=mine ZONE=us-west4-a TYPE=v5litepod-16 RUN_ID=first RUNS=/mnt/runs NFS=HOST:/SHARE SPOT=1 \
#           launch/babysit.sh configs/pacs.py [more flags of main]
# Also:   BY=tpu_queued.sh for queued resources and many slices (tpu_vm.sh), RETRIES=N restarts at most (1000),
#         PAUSE=SECONDS between two (10), KEEP=1 leaves the TPU there at the end, DRY_RUN=1 prints the commands.
# Cost:   the TPU, until the end. Stopped by Ctrl-C it leaves the TPU there, and main running: delete it by hand.
# Exit:   main's own status. It goes on for 42 (preempted and saved) and for 127 to 255 (killed, or the connection
#         lost), and stops for all else: 0 is done, 2 is bad input, 1 would come again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/dry_run.sh"
[[ $# -ge 1 ]] || refuse "call it as babysit.sh CONFIG [flags of main]"
need NAME ZONE TYPE RUN_ID RUNS
by=$here/${BY:-tpu_vm.sh}
[[ -f $by ]] || refuse "BY=$BY: must be tpu_vm.sh or tpu_queued.sh"

# Leaves a TPU that is ready and set up, or fails.
make_ready() {
  local state
  state=$(bash "$by" state 2>/dev/null) || state=
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    echo "$state"
  elif [[ $state == READY ]]; then
    return 0
  elif [[ -n $state ]]; then
    bash "$by" delete || return 1
  fi
  bash "$by" create || return 1
  bash "$by" setup && return 0
  bash "$by" delete # or it would count as ready, without the program
  return 1
}

retries=0 status=0
while true; do
  status=0
  if make_ready; then
    bash "$by" run "$@" || status=$?
  else
    status=255
  fi
  ((status == 42 || status >= 127)) || break
  ((retries < ${RETRIES:-1000})) || break
  ((retries += 1))
  echo "babysit.sh: $RUN_ID ended with $status; restart $retries"
  sleep "${PAUSE:-10}"
done
echo "babysit.sh: $RUN_ID ended with $status after $retries restarts"
if [[ ${KEEP:-0} != 1 ]]; then bash "$by" delete; fi
exit "$status"
