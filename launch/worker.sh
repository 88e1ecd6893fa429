#!/usr/bin/env bash
# A worker's side of tpu_vm.sh, which calls it over ssh; sky.yaml has it install, too.
#
#   launch/worker.sh install VERSION [EXTRA]  Python and this package with an extra, tpu, in .venv
#   launch/worker.sh start COMMAND...         detached: it outlives the connection
#   launch/worker.sh status                   running, stopped, ended CODE, died, or not started
#   launch/worker.sh stop SECONDS             SIGTERM, then waits that long for the command to save
#
# .run/ has its log, its process group, and how it ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'worker %s: error: %s\n' "$(hostname)" "$*" >&2
    exit 2
}

install() {
    export PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    [[ -x .venv/bin/python ]] || uv venv --python "$1" .venv
    uv pip install --python .venv/bin/python -c constraints.txt -e ".[${2:-tpu},gcs]"
}

is_running() {
    [[ -s .run/pid && ! -e .run/ended ]] && kill -0 -- "-$(cat .run/pid)" 2>/dev/null
}

start() {
    [[ -x .venv/bin/python ]] || fail "nothing is installed here; \`setup\` comes first"
    ! is_running || fail "a command runs already; stop it first"
    mkdir -p .run
    rm -f .run/pid .run/ended .run/stopped
    printf -- '--- %s %s\n' "$(date -u +%FT%TZ)" "$*" >>.run/log
    setsid bash launch/worker.sh supervise "$@" >>.run/log 2>&1 </dev/null &
    until [[ -s .run/pid ]]; do sleep 0.05; done
}

# Leads the command's process group and notes how it ends. The trap is for this shell alone: it has
# to outlive the signals that the command answers to.
supervise() {
    local code=0
    trap : TERM INT HUP
    echo $$ >.run/pid
    export JAX_PLATFORMS=tpu,cpu  # no TPU is an error, not a reason to use the CPU
    PATH=$PWD/.venv/bin:$PATH "$@" || code=$?
    echo "$code" >.run/ended
}

status() {
    local how="not started"
    if is_running; then
        how=running
    elif [[ -e .run/stopped ]]; then
        how="stopped${1:-}"
    elif [[ -s .run/ended ]]; then
        how="ended $(cat .run/ended)"
    elif [[ -s .run/pid ]]; then
        how=died  # with its machine, or killed together with what watches it
    fi
    [[ ! -s .run/log ]] || how="$how; last line: $(tail -n 1 .run/log)"
    printf 'worker %s: %s\n' "$(hostname)" "$how"
}

# A second SIGTERM would cut the save short, so only the first call sends one.
stop() {
    local end=$((SECONDS + $1))
    if is_running && [[ ! -e .run/stopped ]]; then
        touch .run/stopped
        kill -TERM -- "-$(cat .run/pid)"
    fi
    while is_running && [[ $SECONDS -lt $end ]]; do sleep 0.2; done
    ! is_running || fail "it runs still, $1 s after SIGTERM: process group $(cat .run/pid)"
    status
}

case ${1:-} in
    install | start | supervise | status | stop) "$@" ;;
    *) fail "there is no command \"${1:-}\": install, start, status or stop" ;;
esac
