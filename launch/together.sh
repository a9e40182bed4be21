# shellcheck shell=bash
# Runs commands side by side: their lines prefixed, their exit codes made one. Sourced by local.sh and tpu_vm.sh.
#
#     . launch/together.sh
#     begin
#     start LABEL COMMAND...     # as often as needed
#     finish                     # waits for all; exit code in $merged
#
# At SIGTERM, Ctrl-C or the terminal's end, and as soon as one has ended with neither 0 nor 75, `stop` asks all to end: by default
# with SIGTERM to each; a script may define its own.
#
# Needs bash: `set -m` without a terminal. With it each command leads a process group of its own, so that Ctrl-C in a terminal
# reaches the script alone. A supervisor that got it from the terminal and again from here would take the second for "at once".

quoted() {  # prints words as a shell would read them again
    local word line=
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line+=${line:+ }$word
    done
    printf '%s\n' "$line"
}

run() {  # runs a command; in a dry run prints it
    if [[ ${dry_run:-} ]]; then quoted "$@"; else "$@"; fi
}

begin() {
    set -m
    pids=() labels=() readers=() told=0 early=
    trap 'early=1' INT TERM HUP  # until all are started
    fifos=$(mktemp -d "${TMPDIR:-/tmp}/mlprod-launch.XXXXXX") || exit 1
    trap 'rm -rf "$fifos"' EXIT
}

start() {  # label, command: starts it with its lines prefixed
    local fifo=$fifos/${#pids[@]}
    labels+=("$1")
    mkfifo "$fifo" || exit 1
    prefix "$1" <"$fifo" &
    readers+=("$!")
    shift
    "$@" >"$fifo" 2>&1 </dev/null &
    pids+=("$!")
}

prefix() {  # a whole line at a time, so that lines of several never mix
    local line
    while IFS= read -r line || [[ $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

tell() {  # asks all to end
    told=$((told + 1))
    stop
}

stop() {
    local pid
    for pid in "${pids[@]}"; do [[ $pid ]] && kill -TERM "$pid" 2>/dev/null; done
    return 0
}

finish() {  # waits for all; 0 if all ended with 0, else 2 if one did, else 1 if one ended with anything but 75, else 75
    local i code left=${#pids[@]}
    merged=0
    trap tell INT TERM HUP
    [[ ! $early ]] || tell
    while ((left)); do
        sleep 0.1 &
        wait "$!"  # not a sleep of this shell's own, which would put off what a signal asks for
        for i in "${!pids[@]}"; do
            if [[ ! ${pids[i]} ]] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
            wait "${pids[i]}" 2>/dev/null  # bash would say how it was killed
            code=$?
            ((code != 143 || !told)) || code=75  # it had not begun to listen to SIGTERM
            kill -KILL -- "-${pids[i]}" 2>/dev/null  # what it left behind
            pids[i]='' left=$((left - 1))
            case $code in
                0) continue ;;
                75) ((merged)) || merged=75 ;;
                2) merged=2 ;;
                *) ((merged == 2)) || merged=1 ;;
            esac
            echo "[${labels[i]}] ended with exit code $code" >&2
            if ((code != 75 && left && !told)); then tell; fi
        done
    done
    for i in "${!pids[@]}"; do : <>"$fifos/$i"; done  # for the reader of one that was killed before it opened this
    wait "${readers[@]}"
    rm -rf "$fifos"
    trap - INT TERM HUP
}
