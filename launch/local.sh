#!/usr/bin/env bash
# N supervised processes of one run on this machine, which meet on 127.0.0.1: a run of several processes without a cluster.
#
#     launch/local.sh [--dry-run] N COMMAND...
#     launch/local.sh 2 python -m mlprod.train --config configs/debug.py
#
# PORT: where process 0 waits for the others (default: a free one). MLPROD, PYTHON: what to start (defaults: mlprod, python).
# Lines come as `[i] ...`. Ctrl-C and SIGTERM are passed on, each as one SIGTERM: the first lets all save and end, the second ends
# them. When one has failed the others are told. Exit code: 0 if all ended so, else 2 if one did, else 1 if one failed, else 75.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/together.sh"

dry_run=
if [[ ${1-} == --dry-run ]]; then dry_run=1 && shift; fi
if [[ ! ${1-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
    echo "usage: $0 [--dry-run] N COMMAND..." >&2
    exit 2
fi
count=$1 && shift

if [[ $dry_run ]]; then
    [[ ${PORT-} ]] || echo "# PORT: a free one"
    port=${PORT:-PORT}
else
    free='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
    port=${PORT:-$("${PYTHON:-python}" -c "$free")} || exit 1
    begin
fi
for ((i = 0; i < count; i++)); do
    rank=(--coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$i")
    supervised=("${MLPROD:-mlprod}" run "${rank[@]}" -- "$@")
    if [[ $dry_run ]]; then quoted "${supervised[@]}"; else start "$i" "${supervised[@]}"; fi
done
[[ ! $dry_run ]] || exit 0
finish
exit "$merged"
