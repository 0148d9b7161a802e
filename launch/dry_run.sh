# shellcheck shell=bash
# What every script here begins with; it is sourced, not run.
# Needs:  bash.
# Call:   source launch/dry_run.sh

# Runs a command, or with DRY_RUN=1 prints it, quoted so that it can be pasted.
run() {
  if [[ ${DRY_RUN:-0} == 1 ]]; then
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
  else
    "$@"
  fi
}

# Ends the script with one line and the exit status of bad input.
refuse() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

# Refuses unless each of the named variables is set.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || refuse "$name is not set: put it before the command, as in $name=... $0"
  done
}

# Takes a slash off the end of RUNS, and sets `store` to what a bucket needs beside the package: gcs, s3, or nothing.
# shellcheck disable=SC2034  # the scripts that source this read it
read_runs() {
  RUNS=${RUNS%/} store=
  case $RUNS in
    gs://?*) store=gcs ;;
    s3://?*) store=s3 ;;
    *://*) refuse "RUNS=$RUNS: give gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, or a folder that all hosts share" ;;
  esac
}
