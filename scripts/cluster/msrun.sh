#!/usr/bin/env bash
# A batch job on all NPUs of one node, or of several: one process a device, each with its share of the clips.
#
#   one node:       bash scripts/cluster/msrun.sh manifest.jsonl --out results/ --model Qwen/Qwen2-Audio-7B --task caption
#   several nodes:  NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/cluster/msrun.sh …    (on the first node)
#                   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash scripts/cluster/msrun.sh …    (on the second)
#   no NPU:         RANKS_PER_NODE=2 bash scripts/cluster/msrun.sh … --device cpu
#
# When all nodes have ended: mindone-audio batch --merge results/
# The arguments are those of `mindone-audio batch`. --out must be a folder that all nodes share.
#
#   RANKS_PER_NODE  processes on this node, the same on every node (default: the NPUs that it sees)
#   NODES NODE_RANK MASTER_ADDR MASTER_PORT   (default: 1, 0, 127.0.0.1, 8118)
#   LOG_DIR         what each rank prints (default: msrun-logs)
#   PYTHON          the interpreter (default: python)
#   CANN_SET_ENV    CANN's set_env.sh (default: where CANN installs itself, unless its variables are set already)
#   MINDONE_AUDIO_BIND_CORES=0   does not bind the ranks to cores
#
# Each rank on an NPU binds itself to its share of this node's cores (mindone_audio/machine/affinity.py), because msrun's
# own --bind_core does nothing under cgroup version 2. Ranks that are bound already are left alone.
#
# Exit status: 0 all shares are complete (clips that failed are counted by --merge), 143 ended by SIGTERM or SIGINT after
# the batches in progress, otherwise what msrun says. The same command again continues.
set -euo pipefail

python=${PYTHON:-python}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
log_dir=${LOG_DIR:-msrun-logs}
nodes=${NODES:-1}

fail() {
    echo "msrun.sh: $*" >&2
    exit 2
}

# "0, 3-5,1" -> "0,1,3,4,5". CANN wants ascending numbers without blanks and stops at the first character that it does
# not know, so that "0, 1" is one device.
device_list() {
    local entry first last number
    tr -d '[:blank:]' <<< "$1" | tr ',' '\n' | while read -r entry; do
        case $entry in
            '') continue ;;
            *[!0-9-]* | -* | *- | *-*-*) echo "$entry: no device list" >&2; return 1 ;;
        esac
        first=${entry%-*} last=${entry#*-}
        for ((number = first; number <= last; number++)); do echo "$number"; done
    done | sort -nu | paste -sd, -
}

count_devices() {
    local names
    if [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
        tr ',' '\n' <<< "$ASCEND_RT_VISIBLE_DEVICES" | wc -l
    else
        shopt -s nullglob
        names=(/dev/davinci[0-9]*)
        echo "${#names[@]}"
    fi
}

# State, parent and start time of process $1, without ps, which small containers do not have.
process_facts() {
    local line fields
    { read -r line < "/proc/$1/stat"; } 2> /dev/null || return 1
    read -ra fields <<< "${line##*) }"
    state=${fields[0]} parent=${fields[1]} started=${fields[19]}
}

is_alive() { process_facts "$1" && [ "$state" != Z ]; }

# Remember msrun's processes as NUMBER:START while it can be told whose they are; numbers are used again, times are not.
note_ranks() {
    local path found=()
    for path in /proc/[0-9]*; do
        if process_facts "${path#/proc/}" && [ "$parent" = "$launcher" ]; then found+=("${path#/proc/}:$started"); fi
    done
    if [ ${#found[@]} -gt 0 ]; then ranks=("${found[@]}"); fi
}

# Tell every rank that is left to finish its batch, and wait until none is.
end_ranks() {
    local entry
    for entry in ${ranks[@]+"${ranks[@]}"}; do
        if is_alive "${entry%:*}" && [ "$started" = "${entry#*:}" ]; then kill -TERM "${entry%:*}" || true; fi
    done
    for entry in ${ranks[@]+"${ranks[@]}"}; do
        while is_alive "${entry%:*}" && [ "$started" = "${entry#*:}" ]; do sleep 0.2; done
    done
}

# SIGTERM leaves msrun's ranks running, SIGINT has them killed in the middle of a batch, and the first rank that ends
# with an error status has the others killed. So msrun goes first, then its ranks are told to finish.
# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
    trap '' TERM INT
    echo "msrun.sh: ending; the ranks finish their batches" >&2
    if is_alive "$launcher"; then note_ranks; fi
    kill -KILL "$launcher" 2> /dev/null || true
    end_ranks
    exit 143
}

if [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
    ASCEND_RT_VISIBLE_DEVICES=$(device_list "$ASCEND_RT_VISIBLE_DEVICES") ||
        fail "ASCEND_RT_VISIBLE_DEVICES should be like 0,1,2"
    export ASCEND_RT_VISIBLE_DEVICES
fi

# set_env.sh reads variables that may not be set, which `set -u` makes an error.
if [ -z "${ASCEND_HOME_PATH:-}" ] || [ -n "${CANN_SET_ENV:-}" ]; then
    for file in "${CANN_SET_ENV:-}" /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
        if [ -n "$file" ] && [ -f "$file" ]; then
            set +u
            # shellcheck disable=SC1090  # it is wherever CANN is
            source "$file"
            set -u
            break
        fi
    done
fi

ranks_per_node=${RANKS_PER_NODE:-$(count_devices)}
case $ranks_per_node$nodes${NODE_RANK:-0} in *[!0-9]*) fail "RANKS_PER_NODE, NODES and NODE_RANK are numbers" ;; esac
[ "$ranks_per_node" -gt 0 ] || fail "no NPU here (no /dev/davinci*): for the CPU set RANKS_PER_NODE and add --device cpu"
if [ "$nodes" -gt 1 ]; then
    # Without its number a node's ranks would not know which clips are theirs, and the address is needed to name node 0.
    [ -n "${NODE_RANK:-}" ] || fail "NODES=$nodes needs NODE_RANK, from 0 to $((nodes - 1))"
    [ "${NODE_RANK:-0}" -lt "$nodes" ] || fail "NODE_RANK=$NODE_RANK: with NODES=$nodes it is 0 to $((nodes - 1))"
    [ -n "${MASTER_ADDR:-}" ] || fail "NODES=$nodes needs MASTER_ADDR, the address of node 0"
fi

# msrun starts `python` from PATH, whichever interpreter runs msrun itself.
bin=$("$python" -c 'import os, sys; print(os.path.dirname(os.path.abspath(sys.executable)))') ||
    fail "no interpreter $python: set PYTHON"
export PATH=$bin:$PATH PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
[ -x "$bin/msrun" ] || fail "no msrun beside $bin/python: install MindSpore there, or set PYTHON"
# On a CPU the ranks would otherwise each start a thread for every core.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((cores = $(nproc)) > ranks_per_node ? cores / ranks_per_node : 1))}

# How many ranks share the cores of this node; msrun does not tell them.
export MS_LOCAL_WORKER=$ranks_per_node

# --join=True: without it msrun returns at once and the job seems to have succeeded. --node_rank: without it the ranks
# of several nodes are numbered only when they communicate, which these do not.
"$bin/msrun" --worker_num=$((nodes * ranks_per_node)) --local_worker_num="$ranks_per_node" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-8118}" --node_rank="${NODE_RANK:-0}" \
    --log_dir="$log_dir" --join=True python -m mindone_audio.cli batch "$@" &
launcher=$!
ranks=()
trap stop TERM INT
while is_alive "$launcher"; do
    note_ranks
    sleep 1 &
    wait $! || true # unlike sleep, wait lets a trap run at once
done
status=0
wait "$launcher" || status=$?
end_ranks # where msrun was killed
exit "$status"
