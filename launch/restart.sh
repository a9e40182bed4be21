#!/bin/sh
# Runs a command and starts it again while it asks for that (exit code 75: stopped, its state saved), at most RESTARTS times.
#
#     launch/restart.sh python -m mlprod.train --config configs/gpu.py
#
# Any other exit code is passed on: 0 is done, 1 and 2 will not go away by starting again.
set -u
RESTARTS="${RESTARTS:-20}"
started=0
while :; do
    "$@"
    code=$?
    [ "$code" -eq 75 ] || exit "$code"
    started=$((started + 1))
    [ "$started" -le "$RESTARTS" ] || { echo "restart.sh: still 75 after $RESTARTS restarts; giving up" >&2; exit 75; }
    echo "restart.sh: exit code 75, starting again ($started of $RESTARTS)" >&2
    sleep "${PAUSE_S:-1}"
done
