#!/usr/bin/env bash
# Runs main on a GKE cluster of TPU slices through xpk, which writes and applies a JobSet.
# Needs:  xpk, gcloud and kubectl; a cluster that xpk made; an image from launch/Dockerfile in a registry.
# Call:   NAME=first CLUSTER=mine ZONE=us-west4-a PROJECT=mine TYPE=v5litepod-16 IMAGE=... RUNS=/runs \
#           launch/xpk.sh configs/pacs.py [more flags of main]
#         With `delete` in place of a config, deletes the workload. The workdir is RUNS/NAME: the same NAME again,
#         after delete, goes on with the same run. RUNS is on a storage that `xpk storage attach` gives to workloads,
#         or gs://BUCKET/FOLDER, with an image of EXTRA=tpu,gcs.
# Also:   STORAGE=NAME of that storage, SLICES=N (1), RESTARTS=N (100), DRY_RUN=1 prints the commands.
# Trap:   xpk restarts for exit codes 42 and 127 to 255 alone, and only up to --max-restarts, which is 0 by default.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"
[[ $# -ge 1 ]] || refuse "call it as xpk.sh CONFIG [flags of main], or xpk.sh delete"
need NAME CLUSTER ZONE PROJECT
where=("--workload=$NAME" "--cluster=$CLUSTER" "--zone=$ZONE" "--project=$PROJECT")
if [[ $1 == delete ]]; then
  run xpk workload delete "${where[@]}" --force
  exit
fi
need TYPE IMAGE RUNS
read_runs
storage=()
if [[ -n ${STORAGE:-} ]]; then storage=("--storage=$STORAGE"); fi
printf -v main '%q ' python -m cwps_jax.main --distributed "--config=$1" "--workdir=$RUNS/$NAME" "${@:2}"
run xpk workload create "${where[@]}" "--tpu-type=$TYPE" "--num-slices=${SLICES:-1}" "--docker-image=$IMAGE" "${storage[@]}" \
  "--max-restarts=${RESTARTS:-100}" --termination-grace-period-seconds=60 "--command=${main% }"
