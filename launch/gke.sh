#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet, by kubectl or by xpk.
#
#   bash launch/gke.sh run --name=mine --image=IMAGE --accelerator=tpu-v5-lite-podslice \
#     --topology=4x4 -- --gin_file=recipes/t5_1_1_base_c4.gin --gin.MODEL_DIR=gs://bucket/mine
#
# Commands:
#   run     submits it, unless it is there already, and shows its log until it has ended. A lost
#           node restarts all of it, which continues from the last checkpoint.
#   status, logs
#   delete  ends it, after saving
#   render  prints the JobSet
# Flags: --name, --image (of launch/docker.sh), --accelerator, --topology, --slices=1,
# --chips_per_host=4, --restarts=100, --namespace=default, --service_account=default (it needs the
# bucket), --poll=SECONDS, --dry_run (prints the commands).
# With --xpk, which makes the JobSet: --cluster, --zone, --project, --tpu_type=v5litepod-16 instead
# of --accelerator, --topology and --namespace; --storage is xpk's name for a bucket mounted at
# /gs/BUCKET.
# After --: the flags of `t5x_lite train`. gs://BUCKET in them is read at /gs/BUCKET.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" image="" accelerator="" topology="" slices=1 chips_per_host=4 restarts=100
namespace=default service_account=default xpk="" cluster="" zone="" project="" tpu_type="" storage=""
poll=10 command="${1:-}"
(($#)) || { usage >&2 && exit 2; }
[[ "$command" == -* ]] || shift
parse_flags "name image accelerator topology slices chips_per_host restarts namespace service_account \
xpk? cluster zone project tpu_type storage poll" "$@"
required name
check_name

# The hosts of one slice: its chips by those of a host, 4x4 by 4 for instance.
hosts() {
  local chips=$((${topology//x/ * }))
  ((chips <= chips_per_host)) && echo 1 && return
  ((chips % chips_per_host == 0)) ||
    die "--topology=$topology has $chips chips, not a multiple of --chips_per_host=$chips_per_host"
  echo $((chips / chips_per_host))
}

# Words as a JSON list, which YAML reads as they are.
json_list() {
  python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"
}

jobset() {
  local hosts_per_slice
  hosts_per_slice="$(hosts)"
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
  annotations:
    # A slice is a node pool; its hosts get one job.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      # Exit status 2 is a mistake in the command, which a restart can't mend.
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts_per_slice
          completions: $hosts_per_slice
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [2]}
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: $service_account
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: train
                  image: $(json_list "$image" | tr -d '[]')
                  args: $(json_list train "${flags[@]}")
                  resources:
                    limits: {google.com/tpu: $chips_per_host}
                  volumeMounts:
                    - {name: buckets, mountPath: /gs}
              volumes:
                - name: buckets
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: _
                      mountOptions: implicit-dirs,rename-dir-limit=100000
YAML
}

submit() {
  local manifest
  manifest="$(jobset)"
  [[ -z "$dry_run" ]] || echo "$manifest"
  run "${kubectl[@]}" create --filename=- <<<"$manifest"
}

exists() {
  local found
  if [[ -n "$xpk" ]]; then
    found="$(ask xpk workload list "${place[@]}" --filter-by-job="$name")" || exit 1
    # A list of all whose names begin so.
    grep --quiet --extended-regexp "(^|[[:space:]])$name([[:space:]]|$)" <<<"$found"
  else
    found="$(ask "${kubectl[@]}" get jobset "$name" --ignore-not-found --output=name)" || exit 1
    [[ -n "$found" ]]
  fi
}

start() {
  if exists; then
    echo "== $name is there already: not submitted again (delete ends it) =="
    return
  fi
  if [[ -n "$xpk" ]]; then
    run xpk workload create "${place[@]}" --workload="$name" --tpu-type="$tpu_type" \
      --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts" \
      ${storage:+--storage="$storage"} --command="$(quoted t5x_lite train "${flags[@]}")"
  else
    submit
  fi
}

# Shows the log of every slice's first host, through restarts, until the JobSet has ended.
follow() {
  local ended=""
  while [[ -z "$ended" ]]; do
    # No pod yet, or none again: machines are being made.
    run "${kubectl[@]}" wait --for=condition=Ready --timeout=60s pod --selector="$pods" ||
      sleep "$poll"
    run "${kubectl[@]}" logs --follow --prefix --max-log-requests=64 --tail=100 \
      --selector="$pods,batch.kubernetes.io/job-completion-index=0" || sleep "$poll"
    ended="$(ask "${kubectl[@]}" get jobset "$name" \
      --output=jsonpath='{.status.conditions[?(@.status=="True")].type}')" || exit 1
    [[ -z "$dry_run" ]] || return 0
    case "$ended" in
      *Completed*) echo "== finished ==" ;;
      *Failed*) echo "error: the JobSet $name has failed" >&2 && exit 1 ;;
      *) ended="" ;;
    esac
  done
}

kubectl=(kubectl)
if [[ -n "$xpk" ]]; then
  required cluster zone project
  place=(--cluster="$cluster" --zone="$zone" --project="$project")
  needs kubectl xpk
elif [[ "$command" != render ]]; then
  kubectl+=(--namespace="$namespace")
  needs kubectl
fi
case "$command" in
  run | render)
    if [[ -n "$xpk" ]]; then required image tpu_type; else required image accelerator topology; fi
    check_bucket
    in_buckets /gs
    ;;
esac
pods="jobset.sigs.k8s.io/jobset-name=$name"
trap on_exit EXIT
case "$command" in
  run)
    start
    left_behind="the JobSet $name, unless it has ended: bash launch/gke.sh delete --name=$name ..."
    follow
    left_behind=""
    ;;
  render) jobset ;;
  logs) follow ;;
  status)
    if [[ -n "$xpk" ]]; then
      run xpk workload list "${place[@]}" --filter-by-job="$name"
    else
      run "${kubectl[@]}" get jobset,pods --selector="$pods" --output=wide
    fi
    ;;
  delete)
    if [[ -n "$xpk" ]]; then
      run xpk workload delete "${place[@]}" --workload="$name"
    else
      run "${kubectl[@]}" delete jobset "$name" --ignore-not-found
    fi
    ;;
  *) die "unknown command '$command': expected run, status, logs, delete or render" ;;
esac
