#!/usr/bin/env bash
# Images with t5x_lite in them, and its commands run in one.
#
#   bash launch/docker.sh build --tag=IMAGE --device=gpu
#   bash launch/docker.sh push --tag=IMAGE
#   bash launch/docker.sh run --tag=IMAGE --device=gpu --folder=runs -- train \
#     --gin_file=recipes/quickstart.gin --gin.MODEL_DIR=./runs/mine
#
# `docker stop` has training save; it ends with status 143, saved and not finished.
# Flags: --tag, --device=tpu|gpu (default: gpu), --folder (of this machine, at /work/NAME:
# where commands run), --dry_run
# (prints the commands). After --: a command of `t5x_lite`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

tag="" device=gpu folder="" command="${1:-}"
(($#)) || { usage >&2 && exit 2; }
[[ "$command" == -* ]] || shift
parse_flags "tag device folder" "$@"
required tag
[[ "$device" == tpu || "$device" == gpu ]] || die "--device='$device': expected tpu or gpu"
needs docker
case "$command" in
  build) run docker build --file="$root/launch/Dockerfile.$device" --tag="$tag" "$root" ;;
  push) run docker push "$tag" ;;
  run)
    # A TPU VM's container needs its devices and the network that the hosts talk through.
    if [[ "$device" == gpu ]]; then devices=(--gpus=all); else devices=(--privileged --network=host); fi
    mounts=()
    if [[ -n "$folder" ]]; then
      folder="$(cd "$folder" && pwd)" || die "--folder: no such folder"
      mounts=(--volume="$folder:/work/$(basename "$folder")")
    fi
    run docker run --rm --init --shm-size=2g --stop-timeout=300 "${devices[@]}" "${mounts[@]}" "$tag" \
      "${flags[@]}"
    ;;
  *) die "unknown command '$command': expected build, push or run" ;;
esac
