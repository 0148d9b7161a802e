# shellcheck shell=bash disable=SC2034  # the scripts that source it read its variables
# What tpu_vm.sh and tpu_queued.sh share; it is sourced, not run.
# Needs:  bash 4.4; gcloud, logged in; ssh-add ~/.ssh/google_compute_engine where there is more than one host.
# Call:   source launch/tpu.sh
#   NAME     of the TPU, and of the queued resource          ZONE     such as us-west4-a
#   TYPE     such as v5litepod-16, v5p-8, v6e-16             PROJECT  of Google Cloud; gcloud's own by default
#   RUN_ID   of the run: one RUN_ID is one workdir, so the same RUN_ID again goes on with the same run
#   RUNS     a folder that all hosts share and that outlives them, such as /mnt/runs, or gs://BUCKET/FOLDER, for
#            which setup installs what is needed; the workdir is RUNS/RUN_ID
#   NFS      HOST:/SHARE, which setup mounts at RUNS on every host (Filestore, or any NFS server from version 4);
#            who logs in there has to be allowed to write to it
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source launch/dry_run.sh
need NAME ZONE TYPE
where=("--zone=$ZONE")
if [[ -n ${PROJECT:-} ]]; then where+=("--project=$PROJECT"); fi
spot=()
if [[ ${SPOT:-0} == 1 ]]; then spot=(--spot); fi
archive=runs/cwps_jax.tar.gz

# Prints the software of a TPU VM that Google names for JAX on this generation.
runtime_version() {
  case $TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) refuse "TYPE=$TYPE is of no known generation: v2, v3, v4, v5litepod, v5p or v6e and the number of cores or chips" ;;
  esac
}

# Packs what is committed, to be copied to the hosts; changes that are not committed stay at home.
pack() {
  run mkdir -p runs
  run git archive --format=tar.gz --prefix=cwps_jax/ "--output=$archive" HEAD
}

# The commands of a host, each one string: ssh joins what it is given, and the host's shell splits it again.
store=
if [[ -n ${RUNS:-} ]]; then read_runs; fi
install_command="tar xzf cwps_jax.tar.gz && ${store:+EXTRA=$store }bash cwps_jax/launch/tpu_host.sh install"
if [[ -n ${NFS:-} ]]; then
  need RUNS
  [[ -z $store ]] || refuse "RUNS=$RUNS is a bucket, where NFS cannot be mounted: leave out one of the two"
  install_command+=" $NFS $RUNS"
fi
logs_command="tail -n 100 -F cwps_jax.log"
run_command() {
  local line
  printf -v line '%q ' bash cwps_jax/launch/tpu_host.sh run "--config=$1" "--workdir=$RUNS/$RUN_ID" "${@:2}"
  printf '%s\n' "${line% }"
}
