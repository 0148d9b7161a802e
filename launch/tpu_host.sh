#!/usr/bin/env bash
# What is done on each host of a TPU; tpu_vm.sh and tpu_queued.sh call it there.
# Needs:  the repository, unpacked into cwps_jax/ of the home folder.
# Call:   bash cwps_jax/launch/tpu_host.sh install [HOST:/SHARE FOLDER, of NFS, to be mounted]
#         EXTRA=gcs before it, or s3, where the workdir is in a bucket
#         bash cwps_jax/launch/tpu_host.sh run --config=... --workdir=... [more flags of cwps_jax.main]
# Exit:   run ends with main's own status. When the connection breaks main goes on, and writes to cwps_jax.log;
#         the next run ends it first, by its id: a TPU serves one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=../cwps_jax.log id=../cwps_jax.pid

is_main() { [[ -r /proc/$1/cmdline ]] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -q 'cwps_jax\.main'; }

case ${1:-} in
  install)
    # The hosts come with Python 3.10; uv brings the Python that is needed.
    run sh -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
    run "$HOME/.local/bin/uv" venv --clear --python 3.12 .venv
    run "$HOME/.local/bin/uv" pip install --python .venv/bin/python -c constraints.txt -e ".[demo,tfds,tpu${EXTRA:+,$EXTRA}]"
    if [[ $# -eq 3 ]] && ! mountpoint -q "$3"; then
      run sudo apt-get install -y nfs-common
      run sudo mkdir -p "$3"
      run sudo mount -t nfs -o vers=4 "$2" "$3"
    fi
    ;;
  run)
    if [[ -f $id ]] && is_main "$(cat "$id")"; then
      earlier=$(cat "$id")
      kill -TERM "$earlier"
      for ((second = 0; second < 60; second++)); do
        is_main "$earlier" || break
        sleep 1
      done
      if is_main "$earlier"; then kill -KILL "$earlier"; fi
    fi
    touch "$log"
    before=$(wc -c <"$log")
    "${PYTHON:-.venv/bin/python}" -u -m cwps_jax.main --distributed "${@:2}" >>"$log" 2>&1 &
    main=$!
    echo "$main" >"$id"
    tail -c "+$((before + 1))" -F "--pid=$main" "$log" &
    status=0
    wait "$main" || status=$?
    wait
    exit "$status"
    ;;
  *) refuse "call it as tpu_host.sh install, or tpu_host.sh run --config=CONFIG --workdir=WORKDIR" ;;
esac
