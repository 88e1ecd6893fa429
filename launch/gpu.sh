#!/usr/bin/env bash
# A command on one host with several GPUs: one process that uses all of them.
#
#   launch/gpu.sh [--dry-run] python -m diffusion_distill.main --config=... --workdir=...
#
# It checks first that JAX sees every GPU, because without its CUDA plugin JAX would use the CPU and
# say little about it. SIGTERM and Ctrl-C reach the command, which saves; the same line goes on.
set -euo pipefail

GPUS=${GPUS:-}             # which, as 0,1,2; empty: all of CUDA_VISIBLE_DEVICES, or of the host
PYTHON=${PYTHON:-python}   # that of the command, for the check

DRY_RUN=false

fail() {
    printf 'gpu.sh: error: %s\n' "$*" >&2
    exit 2
}

case ${1:-} in
    --dry-run) DRY_RUN=true && shift ;;
    -h | --help) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    -*) [[ $1 == -- ]] || fail "there is no flag $1; see --help" ;;
esac
[[ ${1:-} != -- ]] || shift
[[ $# -gt 0 ]] || fail "no command: gpu.sh python -m diffusion_distill.main --config=..."

[[ -z $GPUS || $GPUS =~ ^[0-9]+(,[0-9]+)*$ ]] ||
    fail "GPUS \"$GPUS\" must be numbers with commas between them, like 0,1"
[[ -z $GPUS ]] || export CUDA_VISIBLE_DEVICES=$GPUS
export JAX_PLATFORMS=cuda,cpu  # no GPU is an error, not a reason to use the CPU

if [[ $DRY_RUN == true ]]; then
    printf '%q ' env ${GPUS:+"CUDA_VISIBLE_DEVICES=$GPUS"} "JAX_PLATFORMS=$JAX_PLATFORMS" "$@"
    echo
    exit
fi

command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi: is NVIDIA's driver installed?"
listed=$(nvidia-smi --list-gpus 2>&1) || fail "nvidia-smi: $(head -n 1 <<<"$listed")"
count=$(grep -c '^GPU ' <<<"$listed" || true)
wanted=$count
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra chosen <<<"$CUDA_VISIBLE_DEVICES"
    wanted=${#chosen[@]}
    for gpu in "${chosen[@]}"; do
        [[ ! $gpu =~ ^[0-9]+$ || $gpu -lt $count ]] ||
            fail "there is no GPU $gpu: this host has $count, numbered from 0"
    done
fi
[[ $wanted -gt 0 ]] || fail "nvidia-smi lists no GPU"
seen=$("$PYTHON" -c 'import jax; print(len(jax.local_devices()))' 2>/dev/null) || seen=0
[[ $seen == "$wanted" ]] ||
    fail "JAX sees $seen of $wanted GPU(s): is the extra installed? pip install -e '.[cuda]'"

exec "$@"
