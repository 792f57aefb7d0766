#!/usr/bin/env bash
# Exports what was collected, each night: runs export.py for all days up to yesterday, which writes those that are new or
# have grown; at once, then at ten past midnight, UTC.
#
# In: EXPORT_OUT, EXPORT_TYPES and ClickHouse's settings from the environment (DEPLOYMENT.md).
# Out: the files; what export.py says; $TMPDIR/export-failed as long as something is left to do, for the health check.
# What failed is done the next night. The exit code is 2 when a setting cannot be used.
# Promise: a signal ends it at once, and nothing half is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly OUT=${EXPORT_OUT:-/exports}
readonly FAILED=${TMPDIR:-/tmp}/export-failed
read -ra types <<<"${EXPORT_TYPES:-deals tickers depth}"

# call COMMAND...: run it, but let signals through.
call() {
  "$@" &
  wait $!
}

pause() {
  call sleep "$1"
}

# finish: end what runs. Process 1 of a container, as which this runs, is ended by no signal that it does not take.
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
  local jobs
  mapfile -t jobs < <(jobs -p)
  ((${#jobs[@]} == 0)) || kill -TERM "${jobs[@]}" 2>/dev/null || true
  wait
  exit 0
}

# export_all: returns 1 if something is left to do.
export_all() {
  local type code failed=0
  for type in "${types[@]}"; do
    code=0
    call python3 export.py all --type "$type" --to today --out "$OUT" || code=$?
    if ((code == 2)); then
      touch "$FAILED" || true
      exit 2
    fi
    ((code == 0)) || failed=1
  done
  return "$failed"
}

# until_night: by the clock, which somebody may put, and which goes on where a machine sleeps.
until_night() {
  local next=$(((EPOCHSECONDS - 600) / 86400 * 86400 + 86400 + 600))
  TZ=UTC printf 'Next export: %(%FT%TZ)T\n' "$next"
  while ((EPOCHSECONDS < next)); do
    pause $((next - EPOCHSECONDS < 60 ? next - EPOCHSECONDS : 60))
  done
}

main() {
  trap finish TERM INT
  while true; do
    if export_all; then
      rm -f "$FAILED"
    else
      touch "$FAILED" || return 1 # nothing at all can be written: ended and started again, that is seen
    fi
    until_night
  done
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main
