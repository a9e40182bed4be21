#!/usr/bin/env bash
# One supervised process on every worker of a TPU VM slice, or of several: copies the project, installs it, starts the command,
# and shows what all print.
#
#     launch/tpu_vm.sh [--dry-run] --name NAME --zone ZONE [options] -- COMMAND...
#     launch/tpu_vm.sh --name v5e --zone us-west4-a -- python -m mlprod.train --config configs/tpu.py
#
#     --project P     of Google Cloud (default: as gcloud is configured)
#     --slices N      several slices, NAME-0 to NAME-(N-1), made as one queued resource:
#                     gcloud compute tpus queued-resources create Q --node-count=N --node-prefix=NAME ...
#     --workers W     of a slice (default: asked of gcloud)
#     --python CMD    on the workers, 3.11 or newer (default: python3)
#     --follow        only look at what was started before;  --stop: only ask it to end
#
# Needs gcloud, with its key in the agent: `ssh-add ~/.ssh/google_compute_engine`. Only files that git tracks are copied, as they
# are now; no data, and no variable of this machine's environment. Dataset and run's folder must be where every worker sees them.
#
# Lines come as `[worker] ...`, of several slices as `[slice.worker] ...`. The command does not hang on the connection: when that
# is lost it goes on, and --follow shows it again. Ctrl-C, SIGTERM and the end of this terminal send SIGTERM to all supervisors,
# by a connection of its own, and their last lines and exit codes still come; a second Ctrl-C ends them at once. (ssh alone passes
# no Ctrl-C on without a terminal on the worker, and with one, -tt, a lost connection would end the run.)
# Exit code: 0 if all ended with 0, else 2 if one did, else 1 if one failed, else 75 (also: connection lost). When one has failed
# the others are told.
set -uo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/together.sh"

usage() {
    echo "tpu_vm.sh: $1; usage: launch/tpu_vm.sh [--dry-run] --name NAME --zone ZONE [options] -- COMMAND..." >&2
    exit 2
}

dry_run='' name='' zone='' project='' slices=1 workers='' python=python3 only=''
while (($#)); do
    case $1 in
        --dry-run) dry_run=1 ;;
        --follow | --stop) only=${1#--} ;;
        --name | --zone | --project | --slices | --workers | --python)
            (($# > 1)) || usage "$1 needs a value"
            printf -v "${1#--}" %s "$2"
            shift
            ;;
        --) shift && break ;;
        *) usage "unknown option $1" ;;
    esac
    shift
done
[[ $name && $zone ]] || usage "--name and --zone must be given"
[[ $slices =~ ^[1-9][0-9]*$ && ${workers:-1} =~ ^[1-9][0-9]*$ ]] || usage "--slices and --workers are numbers"
[[ $only ]] || (($#)) || usage "no COMMAND behind --"
cd "$(dirname "$0")/.." || exit 1

names=("$name")
if ((slices > 1)); then names=() && for ((s = 0; s < slices; s++)); do names+=("$name-$s"); done; fi
where=(--zone="$zone")
[[ ! $project ]] || where+=(--project="$project")

tpu() { run gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on() { tpu ssh "$1" --worker="$2" --command="$3"; }  # slice, worker or `all`, command
there() { echo "sh mlprod/launch/tpu_worker.sh $(quoted "$@")"; }

count() {  # slice: its workers
    [[ ! $workers ]] || { echo "$workers" && return; }
    tpu describe "$1" --format='value(networkEndpoints.len())'
}

# shellcheck disable=SC2329  # called by `everywhere`
install() {  # slice
    local unpack="mkdir -p mlprod && rm -rf mlprod/mlprod && tar -xzf mlprod.tar.gz -C mlprod"
    tpu scp build/mlprod.tar.gz "$1:" --worker=all &&
        on "$1" all "{ [ ! -e mlprod ] || $(there idle); } && $unpack && $(there install "$python")"
}

follow() {  # slice, worker
    on "$1" "$2" "$(there follow)"
    local code=$?
    ((code == 255)) || return "$code"
    echo "connection lost; what was started goes on, and the same command with --follow shows it"
    return 75
}

command=("$@")
# shellcheck disable=SC2329
launch() { on "$1" all "$(there start "${command[@]}")"; }  # slice

everywhere() {  # function: runs it for all slices at once
    local slice
    [[ $dry_run ]] || begin
    for slice in "${names[@]}"; do
        if [[ $dry_run ]]; then "$1" "$slice"; else start "$slice" "$1" "$slice"; fi
    done
    [[ $dry_run ]] || { finish && return "$merged"; }
}

stop() {  # what `tell` calls: of commands on this machine their whole group; once supervisors run, those
    local slice pid how=stop
    if [[ ! $running ]]; then
        for pid in "${pids[@]}"; do [[ ! $pid ]] || kill -TERM -- "-$pid" 2>/dev/null; done
        return
    fi
    ((told < 2)) || how='kill'
    for slice in "${names[@]}"; do
        on "$slice" all "$(there $how)" </dev/null >&2 &
        asked+=("$!")
    done
}

running='' asked=() told=0
if [[ $only == stop ]]; then
    code=0
    for slice in "${names[@]}"; do on "$slice" all "$(there stop)" || code=1; done
    exit "$code"
fi

counts=()
for slice in "${names[@]}"; do
    if [[ $dry_run && ! $workers ]]; then
        count "$slice"
        echo "# --workers was not given: what follows is for 1"
        counts+=(1)
    else
        counts+=("$(count "$slice")") || exit 1
        [[ ${counts[*]: -1} =~ ^[1-9][0-9]*$ ]] || usage "gcloud did not say how many workers $slice has; give --workers"
    fi
done

if [[ ! $only ]]; then
    run mkdir -p build || exit 1
    if [[ $dry_run ]]; then
        echo "git ls-files -z | tar --null -T - -czf build/mlprod.tar.gz"
    else
        git ls-files -z | tar --null -T - -czf build/mlprod.tar.gz || exit 1
    fi
    everywhere install || exit
    running=1
    if ! everywhere launch; then
        stop
        wait
        exit "$merged"
    fi
fi

running=1
[[ $dry_run ]] || begin
for s in "${!names[@]}"; do
    for ((w = 0; w < counts[s]; w++)); do
        label=$w
        ((slices == 1)) || label=$s.$w
        if [[ $dry_run ]]; then follow "${names[s]}" "$w"; else start "$label" follow "${names[s]}" "$w"; fi
    done
done
if [[ $dry_run ]]; then
    echo "# on Ctrl-C, SIGTERM, and when one has failed:"
    for slice in "${names[@]}"; do on "$slice" all "$(there stop)"; done
    exit 0
fi
finish
((${#asked[@]} == 0)) || wait "${asked[@]}"
exit "$merged"
