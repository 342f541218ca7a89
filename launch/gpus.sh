#!/usr/bin/env bash
# Trains on the NVIDIA GPUs of this machine, in one process, started again when it crashes.
#
#   bash launch/gpus.sh --gpus=0,1,2,3 -- --gin_file=recipes/quickstart.gin --gin.MeshConfig.fsdp=4
#
# Flags: --gpus (default: all), --restarts=N (in a row, default 3), --dry_run (prints the commands).
# After --: the flags of `t5x_lite train`. The same command continues a run that was stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

gpus="" restarts=3
parse_flags "gpus restarts" "$@"
((${#flags[@]})) || { usage >&2 && exit 2; }
needs nvidia-smi
found="$(ask nvidia-smi --query-gpu=index --format=csv,noheader)" || die "nvidia-smi finds no GPU"
for gpu in ${gpus//,/ }; do
  [[ -n "$dry_run" ]] || grep --quiet --line-regexp "$gpu" <<<"$found" ||
    die "--gpus=$gpus: there is no GPU $gpu, but $(tr '\n' ' ' <<<"$found")"
done
[[ -n "$dry_run" ]] || make_venv cuda,data
run env ${gpus:+CUDA_VISIBLE_DEVICES="$gpus"} "$venv/bin/t5x_lite" train --restart="$restarts" \
  "${flags[@]}"
