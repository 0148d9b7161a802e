#!/usr/bin/env bash
# One Cloud TPU slice, of one host or of many: makes it, sets it up, runs main on all its hosts, deletes it.
# Needs:  gcloud, logged in; NAME, ZONE, TYPE, and for run RUN_ID and RUNS: launch/tpu.sh says what they are.
# Call:   NAME=mine ZONE=us-west4-a TYPE=v5litepod-16 launch/tpu_vm.sh create | state | setup | logs | delete
#         ... RUN_ID=first RUNS=/mnt/runs launch/tpu_vm.sh run configs/pacs.py [more flags of main]
# Also:   SPOT=1 creates a spot TPU, cheaper and taken away at any time; DRY_RUN=1 prints the commands.
# Exit:   run ends with main's own status, or 255 when the connection failed.
# Cost:   a TPU costs from create to delete, whether it runs or not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"
vm=(gcloud compute tpus tpu-vm)

case ${1:-} in
  create)
    version=$(runtime_version)
    run "${vm[@]}" create "$NAME" "${where[@]}" "--accelerator-type=$TYPE" "--version=$version" "${spot[@]}"
    ;;
  state) run "${vm[@]}" describe "$NAME" "${where[@]}" '--format=value(state)' ;;
  setup)
    pack
    run "${vm[@]}" scp "$archive" "$NAME:" "${where[@]}" --worker=all
    run "${vm[@]}" ssh "$NAME" "${where[@]}" --worker=all "--command=$install_command"
    ;;
  run)
    [[ $# -ge 2 ]] || refuse "call it as tpu_vm.sh run CONFIG [flags of main]"
    need RUN_ID RUNS
    run "${vm[@]}" ssh "$NAME" "${where[@]}" --worker=all "--command=$(run_command "${@:2}")"
    ;;
  logs) run "${vm[@]}" ssh "$NAME" "${where[@]}" --worker=0 "--command=$logs_command" ;;
  delete) run "${vm[@]}" delete "$NAME" "${where[@]}" --quiet ;;
  *) refuse "call it as tpu_vm.sh create, state, setup, run CONFIG, logs or delete" ;;
esac
