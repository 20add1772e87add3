#!/usr/bin/env bash
# The start command of a ModelArts training job that runs a batch job; the arguments are those of `mindone-audio batch`:
#
#   bash scripts/cluster/modelarts.sh manifest.jsonl --out results --model checkpoint
#
# ModelArts starts this once a device, with RANK_ID, RANK_SIZE and ASCEND_DEVICE_ID (and RANK_TABLE_FILE, which is not
# needed: ranks do not communicate); with MA_RUN_METHOD=msrun it starts it once a node. --out must be storage that all
# nodes share. When the job has ended: mindone-audio batch --merge FOLDER
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

if [ "${MA_RUN_METHOD:-}" = msrun ] || [ -z "${RANK_ID:-}" ]; then
    # Once a node: VC_TASK_INDEX is its number, MA_NUM_HOSTS how many there are, VC_WORKER_HOSTS their names.
    export NODES=${MA_NUM_HOSTS:-1} NODE_RANK=${VC_TASK_INDEX:-0}
    if [ "$NODES" -gt 1 ]; then
        hosts=${VC_WORKER_HOSTS:?with several nodes ModelArts should set VC_WORKER_HOSTS}
        export MASTER_ADDR=${hosts%%,*}
    fi
    exec bash "$here/msrun.sh" "$@"
fi

# Once a device: no launcher, each process takes its share and its device.
export RANK_ID RANK_SIZE=${RANK_SIZE:?ModelArts should set RANK_SIZE with RANK_ID}
export DEVICE_ID=${ASCEND_DEVICE_ID:-${DEVICE_ID:?ModelArts should set ASCEND_DEVICE_ID}}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python}" -m mindone_audio.cli batch "$@"
