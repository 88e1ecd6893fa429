#!/usr/bin/env bash
# A Cloud TPU slice, from the request to the result, with gcloud and one process a host.
#
#   launch/tpu_vm.sh create                  request a slice (a queued resource)
#   launch/tpu_vm.sh setup                   wait for it, copy this code to all workers, install it
#   launch/tpu_vm.sh run COMMAND...          start the same command on all workers, detached
#   launch/tpu_vm.sh status                  state of the slice, and whether the command runs
#   launch/tpu_vm.sh logs                    copy the log of every worker to LOGS/TPU_NAME
#   launch/tpu_vm.sh stop                    SIGTERM on all workers: the run saves, then stops
#   launch/tpu_vm.sh delete NAME             give the slice back, and with it its disks
#
# --dry-run prints the commands and runs none. The variables below come from the environment:
#
#   SPOT=true ACCELERATOR_TYPE=v5litepod-64 launch/tpu_vm.sh create
#
# A lost connection does not stop a run. A slice that is preempted takes its disks with it, so the
# workdir must be where it outlives them, and where all workers see it: in a bucket, as
# --workdir=gs://NAME/FOLDER, or on a share that each has mounted at the same path. The same command
# on a new slice then goes on from its last whole checkpoint. launch/sky.yaml does that by itself.
set -euo pipefail

PROJECT=${PROJECT:-}                          # empty: the project of `gcloud config set project`
ZONE=${ZONE:-us-west4-a}                      # cloud.google.com/tpu/docs/regions-zones
TPU_NAME=${TPU_NAME:-diffusion-distill}       # of the queued resource and of its slice
# v5litepod-N and v6e-N have N chips. v4-N and v5p-N have N cores, two to a chip: v4-16 is 8 chips.
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-8}
RUNTIME_VERSION=${RUNTIME_VERSION:-}          # empty: Google's for JAX on this accelerator
SPOT=${SPOT:-false}                           # true: cheaper, and may be preempted at any time
CREATE_FLAGS=${CREATE_FLAGS:-}                # more for gcloud's `create`, as --reserved
SSH_FLAGS=${SSH_FLAGS:-}                      # more for its `ssh` and `scp`, as --internal-ip
PYTHON_VERSION=${PYTHON_VERSION:-3.11}        # on the workers, whose own may be older
LOGS=${LOGS:-runs/logs}                       # where `logs` copies to
POLL_SECONDS=${POLL_SECONDS:-60}              # between two looks at the slice
STOP_SECONDS=${STOP_SECONDS:-600}             # that `stop` waits for the run to save

DRY_RUN=false
DIRECTORY=diffusion_distill                   # of the code, in the home of each worker
export CLOUDSDK_CORE_DISABLE_PROMPTS=1        # a question would wait behind captured output

cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set -/s/^# \{0,1\}//p' launch/tpu_vm.sh
}

say() {
    [[ $DRY_RUN == true ]] || printf 'tpu_vm.sh: %s\n' "$*"
}

fail() {
    printf 'tpu_vm.sh: error: %s\n' "$*" >&2
    exit 2
}

# Runs a command, or prints it so that it can be pasted into a shell, also where output is captured.
exec 3>&1
call() {
    if [[ $DRY_RUN == true ]]; then
        printf '%q ' "$@" >&3
        echo >&3
    else
        "$@"
    fi
}

check() {
    [[ $TPU_NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
        fail "\"$TPU_NAME\" is not a name (TPU_NAME): small letters, digits, hyphens; 63 at most"
    [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] ||
        fail "ZONE \"$ZONE\" is not a zone: they look like us-west4-a"
    [[ $SPOT == true || $SPOT == false ]] || fail "SPOT \"$SPOT\" must be true or false"
    where=(--zone="$ZONE")
    [[ -z $PROJECT ]] || where+=(--project="$PROJECT")
    [[ $DRY_RUN == true ]] || command -v gcloud >/dev/null ||
        fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

runtime_version() {
    case $ACCELERATOR_TYPE in  # cloud.google.com/tpu/docs/runtimes
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v[234]-*) echo tpu-ubuntu2204-base ;;
        *) fail "ACCELERATOR_TYPE \"$ACCELERATOR_TYPE\" is none of v4-N, v5litepod-N, v5p-N," \
            "v6e-N; another needs its RUNTIME_VERSION" ;;
    esac
}

# What gcloud complained about, from its standard error in a file: one line with what to change.
reason() {
    local why place="zone $ZONE of project ${PROJECT:-(as gcloud is configured)}"
    why=$(sed -n 's/^ERROR: *\(([^)]*)\)\{0,1\} *//p' "$1" | head -n 1)
    [[ $why != "{" ]] || why=$(sed -n 's/.*"message": *"\(.*\)".*/\1/p' "$1" | head -n 1)
    [[ -n $why ]] || why=$(grep -v '^[[:space:]]*$' "$1" | tail -n 1)
    if grep -q 'attribute \[project\]' "$1"; then
        echo "no project: set PROJECT, or \`gcloud config set project NAME\`"
        return
    fi
    case $why in
        *"active account"*) echo "gcloud does not know who you are: \`gcloud auth login\`" ;;
        *NOT_FOUND*) echo "there is no \"$TPU_NAME\" in $place ($why)" ;;
        *ALREADY_EXISTS*) echo "there is a \"$TPU_NAME\" in $place already ($why)" ;;
        *PERMISSION_DENIED* | *permission* | *INVALID_ARGUMENT*)
            echo "gcloud refuses $place: is PROJECT, ZONE or ACCELERATOR_TYPE wrong? ($why)" ;;
        *) echo "gcloud failed in $place: ${why:-it did not say why}" ;;
    esac
}

# Runs one of gcloud's own commands. On failure: one line, and 2.
cloud() {
    local errors code=0
    if [[ $DRY_RUN == true ]]; then
        call gcloud "$@"
        return
    fi
    errors=$(mktemp)
    if ! gcloud "$@" 2>"$errors"; then
        code=2
        printf 'tpu_vm.sh: error: %s\n' "$(reason "$errors")" >&2
    fi
    rm -f "$errors"
    return "$code"
}

queued() {
    cloud compute tpus queued-resources "$1" "$TPU_NAME" "${where[@]}" "${@:2}"
}

# ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED, ...; PREEMPTED is of the slice,
# which can be so for a while before its request is SUSPENDED.
state() {
    local found slice
    found=$(queued describe --format='value(state.state)') || return
    [[ $DRY_RUN == false ]] || found=ACTIVE
    if [[ $found == ACTIVE ]]; then
        slice=$(cloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" \
            --format='value(state)' 2>/dev/null) || slice=
        case $slice in PREEMPTED | TERMINATED) found=PREEMPTED ;; esac
    fi
    echo "$found"
}

# Prints what the command prints on the workers; gcloud tries again where ssh does not answer yet.
on_all_workers() {
    # shellcheck disable=SC2086  # SSH_FLAGS are words
    call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" $SSH_FLAGS --worker=all \
        --command="$1"
}

worker() {  # a command of worker.sh, its words quoted for the shell over there
    on_all_workers "bash $DIRECTORY/launch/worker.sh$(printf ' %q' "$@")"
}

require_active() {
    local found
    found=$(state) || exit 2
    [[ $found == ACTIVE ]] || fail "\"$TPU_NAME\" is $found, not ACTIVE; \`setup\` waits for it"
}

create() {
    local version=${RUNTIME_VERSION:-} spot=
    [[ -n $version ]] || version=$(runtime_version) || return
    [[ $SPOT == false ]] || spot=--spot
    # shellcheck disable=SC2086  # CREATE_FLAGS are words, and spot is one or none
    queued create --node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" \
        --runtime-version="$version" $spot $CREATE_FLAGS || return
    say "requested \"$TPU_NAME\" ($ACCELERATOR_TYPE)"
}

wait_until_active() {
    local found last=
    while true; do
        found=$(state) || exit 2
        [[ $found == "$last" ]] || say "\"$TPU_NAME\" is $found"
        last=$found
        case $found in
            ACTIVE) return ;;
            FAILED | SUSPENDED | SUSPENDING | PREEMPTED | DELETING)
                fail "it will not become ACTIVE: \`delete $TPU_NAME\`, then \`create\`" ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

install_on_workers() {
    local archive=${TMPDIR:-/tmp}/diffusion_distill.$$.tgz code=0
    call tar -czf "$archive" --exclude=__pycache__ \
        setup.py pyproject.toml constraints.txt configs diffusion_distill launch || return
    # shellcheck disable=SC2086  # SSH_FLAGS are words
    call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:diffusion_distill.tgz" "${where[@]}" \
        $SSH_FLAGS --worker=all || code=$?
    call rm -f "$archive"
    [[ $code == 0 ]] || return "$code"
    on_all_workers "mkdir -p $DIRECTORY && tar -xzf diffusion_distill.tgz -C $DIRECTORY" || return
    worker install "$PYTHON_VERSION"
}

setup() {
    wait_until_active
    install_on_workers || fail "\"$TPU_NAME\" is not set up on all workers; the reason stands above"
    say "\"$TPU_NAME\" is set up"
}

run() {
    [[ $# -gt 0 ]] || fail "run needs a command: run python -m diffusion_distill.main --config=..."
    require_active
    worker start "$@" || fail "not started on all workers; \`status\` shows where"
    say "started; \`status\` and \`logs\` show how it goes"
}

status() {
    local found
    found=$(state) || exit 2
    say "\"$TPU_NAME\" is $found"
    [[ $found != ACTIVE ]] || worker status || fail "not all workers answered: is \`setup\` done?"
}

logs() {
    local count i folder=$LOGS/$TPU_NAME
    require_active
    count=$(cloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" \
        --format='value(networkEndpoints.len())') || exit 2
    [[ $DRY_RUN == false ]] || count=1
    call mkdir -p "$folder"
    for ((i = 0; i < count; i++)); do
        # shellcheck disable=SC2086  # SSH_FLAGS are words
        call gcloud compute tpus tpu-vm scp "$TPU_NAME:$DIRECTORY/.run/log" \
            "$folder/worker-$i.log" "${where[@]}" $SSH_FLAGS --worker="$i" ||
            fail "worker $i has no log: was \`run\` called?"
    done
    [[ $DRY_RUN == false ]] || echo "# and so on, for each worker"
    say "$count log(s) in $folder"
}

stop() {
    require_active
    worker stop "$STOP_SECONDS" || fail "not stopped on all workers: \`status\` shows where"
}

delete() {
    [[ $# == 1 ]] || fail "delete needs the name of what to delete, and nothing else: delete NAME"
    TPU_NAME=$1
    check
    state >/dev/null || exit 2  # a wrong name is found before anything is deleted
    # --force: a slice that is up, or was preempted and is listed still, would hold its request.
    queued delete --force --quiet || exit 2
    say "deleted \"$TPU_NAME\""
}

main() {
    local words=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            --dry-run) DRY_RUN=true ;;
            -h | --help) usage && exit ;;
            --)
                words+=("${@:2}")
                break
                ;;
            -*) fail "there is no flag $1; see --help" ;;
            *)
                words+=("$1")
                if [[ ${#words[@]} -gt 1 && ${words[0]} == run ]]; then
                    words+=("${@:2}")  # the command's own flags
                    break
                fi
                ;;
        esac
        shift
    done
    set -- ${words[@]+"${words[@]}"}
    [[ $# -gt 0 ]] || { usage >&2 && exit 2; }
    case $1 in
        create | setup | status | logs | stop)
            [[ $# == 1 ]] || fail "$1 takes no argument, but got \"$2\""
            check
            "$1" || exit 2
            ;;
        run)
            check
            run "${@:2}"
            ;;
        delete) delete "${@:2}" ;;
        *) fail "there is no command \"$1\": create, setup, run, status, logs, stop or delete" ;;
    esac
}

main "$@"
