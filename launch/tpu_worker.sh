#!/bin/sh
# What tpu_vm.sh does on a worker of a TPU slice, where it comes with the copy of the project.
#
#     sh mlprod/launch/tpu_worker.sh idle                # ends with 2 while a run goes on here
#     sh mlprod/launch/tpu_worker.sh install PYTHON      # virtual environment, pinned packages
#     sh mlprod/launch/tpu_worker.sh start COMMAND...    # the supervised command, which outlives the connection
#     sh mlprod/launch/tpu_worker.sh follow              # its output and, at its end, its exit code
#     sh mlprod/launch/tpu_worker.sh stop                # one SIGTERM; `kill`: another one, which does not wait
#
# gcloud does a command again, up to ten times, when its connection is lost. So each of these may be done twice: `start` starts
# once, `follow` starts nothing, `stop` sends one signal.
set -u
cd "$(dirname "$0")/.." || exit 1
state=.run
verb=${1:-help}
[ $# -eq 0 ] || shift

alive() { # a number alone may be another process's by now, after a restart of the machine
    [ -s $state/pid ] && grep -qs mlprod "/proc/$(cat $state/pid)/cmdline"
}

case $verb in
    idle)
        if alive; then
            echo "tpu_worker.sh: a run goes on here; look at it with --follow, end it with --stop" >&2
            exit 2
        fi
        ;;
    install)
        .venv/bin/python -m pip --version >/dev/null 2>&1 || "$1" -m venv --clear .venv || exit 1
        .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[tpu]' || exit 1
        ;;
    start)
        alive && exit 0
        rm -rf $state && mkdir $state || exit 1
        PATH=$PWD/.venv/bin:$PATH
        {
            "${MLPROD:-mlprod}" run -- "$@" >$state/output 2>&1 &
            echo $! >$state/pid
            wait $!
            echo $? >$state/code.new && mv $state/code.new $state/code
        } </dev/null >/dev/null 2>&1 &
        echo $! >$state/waiter
        until [ -s $state/pid ]; do sleep 0.1; done
        ;;
    follow)
        [ -s $state/pid ] || { echo "tpu_worker.sh: nothing was started here" >&2; exit 2; }
        if alive; then
            tail -n 1000 -s 0.2 --pid="$(cat $state/pid)" -f $state/output
        else
            tail -n 1000 $state/output
        fi
        for _ in $(seq 50); do # who waits for it writes its code; after a restart of the machine nobody does
            kill -0 "$(cat $state/waiter)" 2>/dev/null && waits=1 || waits=
            [ -s $state/code ] && exit "$(cat $state/code)"
            [ "$waits" ] || break
            sleep 0.1
        done
        echo "tpu_worker.sh: it ended without an exit code, as with the machine" >&2
        exit 75
        ;;
    stop)
        # mkdir: of two that try, one makes it
        if alive && mkdir $state/asked 2>/dev/null; then kill -TERM "$(cat $state/pid)"; fi
        exit 0
        ;;
    kill)
        if alive; then kill -TERM "$(cat $state/pid)"; fi
        exit 0
        ;;
    *)
        echo "usage: sh launch/tpu_worker.sh idle | install PYTHON | start COMMAND... | follow | stop | kill" >&2
        exit 2
        ;;
esac
