#!/usr/bin/env bash
# Cloud TPU slices by a queued resource: waits in Google's queue for them, one slice or several (multi-slice).
# Needs:  gcloud, logged in; NAME, ZONE, TYPE, and for run RUN_ID and RUNS: launch/tpu.sh says what they are.
# Call:   NAME=mine ZONE=us-west4-a TYPE=v5litepod-16 launch/tpu_queued.sh create | state | setup | logs | delete
#         ... RUN_ID=first RUNS=/mnt/runs launch/tpu_queued.sh run configs/pacs.py [more flags of main]
# Also:   SLICES=N (1), SPOT=1, WAIT=DURATION in the queue before the request lapses (6h), DRY_RUN=1.
# Exit:   create ends with 0 once the slices are there, with 1 when the request failed or lapsed;
#         run ends with main's own status, or 255 when the connection failed.
# Cost:   from the moment that the slices are there until delete. A spot slice that was taken away leaves its
#         request behind: delete it, then create again (babysit.sh does).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
queued=(gcloud compute tpus queued-resources)
slices=${SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] || refuse "SLICES=$slices: must be a whole number from 1"
all=(--worker=all --node=all)

state() { run "${queued[@]}" describe "$NAME" "${where[@]}" '--format=value(state.state)'; }

case ${1:-} in
  create)
    version=$(runtime_version)
    nodes=("--node-id=$NAME")
    if ((slices > 1)); then nodes=("--node-count=$slices" "--node-prefix=$NAME"); fi
    run "${queued[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--runtime-version=$version" \
      "${nodes[@]}" "--valid-until-duration=${WAIT:-6h}" "${spot[@]}"
    while [[ ${DRY_RUN:-0} != 1 ]]; do
      now=$(state)
      echo "$NAME: $now"
      case $now in
        ACTIVE) break ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
      esac
      sleep 30
    done
    ;;
  state)
    now=$(state)
    [[ $now == ACTIVE ]] && now=READY # as a TPU VM calls it
    echo "$now"
    ;;
  setup)
    pack
    run "${queued[@]}" scp "$archive" "$NAME:" "${where[@]}" "${all[@]}"
    run "${queued[@]}" ssh "$NAME" "${where[@]}" "${all[@]}" "--command=$install_command"
    ;;
  run)
    [[ $# -ge 2 ]] || refuse "call it as tpu_queued.sh run CONFIG [flags of main]"
    need RUN_ID RUNS
    run "${queued[@]}" ssh "$NAME" "${where[@]}" "${all[@]}" "--command=$(run_command "${@:2}")"
    ;;
  logs) run "${queued[@]}" ssh "$NAME" "${where[@]}" --worker=0 --node=0 "--command=$logs_command" ;;
  delete) run "${queued[@]}" delete "$NAME" "${where[@]}" --force --quiet ;;
  *) refuse "call it as tpu_queued.sh create, state, setup, run CONFIG, logs or delete" ;;
esac
