#!/usr/bin/env bash
# Runs one training in several processes on this machine, each with fake CPU devices: a rehearsal of a cluster.
# Needs:  bash 4.4; an environment with cwps_jax; PYTHON names its interpreter (.venv/bin/python where there is one).
# Call:   launch/local.sh PROCESSES DEVICES CONFIG [more flags of cwps_jax.main]
#         launch/local.sh 2 4 configs/digits.py --workdir runs/two_processes
# Also:   PORT=N for the coordinator (a free one), GRACE=SECONDS that the others have to end by themselves after
#         one has failed (90: they notice a lost peer within 70), DRY_RUN=1 to print the commands.
# Exit:   the status of the first process that failed, 0 when none did; SIGTERM, SIGINT and SIGHUP are passed on once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/dry_run.sh"

[[ $# -ge 3 ]] || refuse "call it as local.sh PROCESSES DEVICES CONFIG [flags of main]"
[[ $1 =~ ^[1-9][0-9]*$ && $2 =~ ^[1-9][0-9]*$ ]] || refuse "PROCESSES and DEVICES are whole numbers from 1, not $1 and $2"
processes=$1 devices=$2 config=$3
shift 3
root=$(dirname "$here")
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || python=python3
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=${PORT:-$("$python" -c "$free_port")}

children=()
# shellcheck disable=SC2329  # called by the trap
pass_on() {
  local child
  for child in "${children[@]}"; do kill -TERM "$child" 2>/dev/null || true; done
}
trap pass_on TERM INT HUP

set -m # each child in a process group of its own: a Ctrl-C reaches it once, through pass_on
for ((process = 0; process < processes; process++)); do
  # NPROC: XLA's threads, by which it splits some sums; so `1 8` and `2 4` end with the same bits.
  command=(env JAX_PLATFORMS=cpu "NPROC=$((processes * devices))" "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    "$python" -m cwps_jax.main "--config=$config" "--coordinator=127.0.0.1:$port" "--processes=$processes"
    "--process=$process" "$@")
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    run "${command[@]}"
  else
    "${command[@]}" &
    children+=($!)
  fi
done

status=0 deadline=
while ((${#children[@]} > 0)); do
  running=()
  for child in "${children[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      running+=("$child")
      continue
    fi
    ended=0
    wait "$child" || ended=$?
    if ((ended != 0 && status == 0)); then
      status=$ended deadline=$((SECONDS + ${GRACE:-90}))
    fi
  done
  children=("${running[@]}")
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    for child in "${children[@]}"; do kill -KILL "$child" 2>/dev/null || true; done
  fi
  sleep 0.2
done
exit "$status"
