#!/usr/bin/env bash
# Start a command in the container for an NPU, with the devices and the parts of the host's driver that it needs.
#
#   bash scripts/npu/run.sh                                              a shell, with NPU 0
#   bash scripts/npu/run.sh python -m mindone_audio doctor --device ascend
#   bash scripts/npu/run.sh --devices 0,1 --data /my/clips bash scripts/cluster/msrun.sh /data --out /data/results
#
#   --devices LIST   NPUs of the host, such as 0,1, or all (default: 0); inside they are numbered from 0
#   --image IMAGE    (default: mindone-audio)
#   --data FOLDER    a folder of the host that is /data inside
#   --cache FOLDER   models and compiled operators, /cache inside (default: ~/.cache/mindone-audio)
#   --shm SIZE       shared memory with one NPU (default: 1g); with several it is the host's
#   --user UID:GID   (default: the image's user); the image must have this user, see scripts/npu/Dockerfile
#   --dry-run        print the command that starts the container, and start nothing
#
# DOCKER=podman takes another program than docker. ROOT=FOLDER looks for devices and driver below a folder, for tests.
# Exit status: 2 where something is missing, otherwise that of the command.
set -euo pipefail

docker=${DOCKER:-docker}
root=${ROOT:-}
devices=0 image=mindone-audio data='' cache=${HOME:-/root}/.cache/mindone-audio shm=1g user='' dry_run=false

fail() {
    echo "run.sh: $*" >&2
    exit 2
}

warn() { echo "run.sh: $*" >&2; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=true && shift ;;
        -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
        --) shift && break ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --devices | --image | --data | --cache | --shm | --user)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case $1 in
                --devices) devices=$2 ;;
                --image) image=$2 ;;
                --data) data=$2 ;;
                --cache) cache=$2 ;;
                --shm) shm=$2 ;;
                --user) user=$2 ;;
            esac
            shift 2
            ;;
        -*) fail "no option $1: see --help" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || set -- bash
# docker takes a relative path for the name of a volume.
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
case $data in '' | /*) ;; *) data=$PWD/$data ;; esac

options=(--rm)
if [ -t 0 ] && [ -t 1 ]; then options+=(--interactive --tty); fi

# The devices of the host.
shopt -s nullglob
nodes=("$root"/dev/davinci[0-9]*)
[ ${#nodes[@]} -gt 0 ] ||
    fail "no NPU on this machine: there is no /dev/davinci0. Install the Ascend driver; npu-smi info then lists the NPUs"
present=$(printf '%s\n' "${nodes[@]##*/davinci}" | sort -n | paste -sd, -)
if [ "$devices" = all ]; then devices=$present; fi
case ,$devices, in
    *,,* | *[!0-9,]*) fail "--devices $devices: give numbers of NPUs, such as 0,1, or all" ;;
esac
IFS=, read -ra numbers <<< "$devices"
for number in "${numbers[@]}"; do
    [ -e "$root/dev/davinci$number" ] || fail "no NPU $number on this machine, which has $present"
    options+=(--device "/dev/davinci$number")
done
for name in davinci_manager devmm_svm hisi_hdc; do
    [ -e "$root/dev/$name" ] ||
        fail "/dev/$name is not there, which every NPU needs: restart the machine after the driver was installed"
    options+=(--device "/dev/$name")
done
# The nodes are open to their group only; root needs it where the container has lost CAP_DAC_OVERRIDE.
group=$(stat -c %g "$root/dev/davinci${numbers[0]}")
if [ "$group" != 0 ]; then options+=(--group-add "$group"); fi
if [ -n "$user" ]; then options+=(--user "$user"); fi
# HCCL finds other processes by the host's addresses and shares memory with them.
if [ ${#numbers[@]} -gt 1 ]; then options+=(--network host --ipc host); else options+=(--shm-size "$shm"); fi

# The driver of the host, where the image looks for it, and its version also where the host's note says that it is.
note=$root/etc/ascend_install.info base=/usr/local/Ascend
if [ -f "$note" ]; then
    noted=$(sed -n 's/^Driver_Install_Path_Param=//p' "$note" | tail -n 1)
    if [ -n "$noted" ] && [ -d "$root$noted" ]; then base=${noted%/}; fi
    options+=(--volume /etc/ascend_install.info:/etc/ascend_install.info:ro)
else
    warn "/etc/ascend_install.info is not there: MindSpore cannot tell the driver's version"
fi
[ -d "$root$base/driver/lib64" ] ||
    fail "no Ascend driver in $base/driver: install it, or see what /etc/ascend_install.info says"
options+=(--volume "$base/driver/lib64:/usr/local/Ascend/driver/lib64:ro")
for target in $(printf '%s\n' "$base" /usr/local/Ascend | sort -u); do
    options+=(--volume "$base/driver/version.info:$target/driver/version.info:ro")
done

# npu-smi and its library.
smi=$(PATH=$PATH:$root/usr/local/sbin:$root/usr/local/bin command -v npu-smi || true)
if [ -n "$smi" ]; then
    options+=(--volume "${smi#"$root"}:/usr/local/bin/npu-smi:ro")
else
    warn "npu-smi was not found: inside, doctor cannot tell the health of the NPUs"
fi
if [ -d "$root/usr/local/dcmi" ]; then
    options+=(--volume /usr/local/dcmi:/usr/local/dcmi:ro)
else
    warn "/usr/local/dcmi is not there: npu-smi does not work inside"
fi

options+=(--volume "$cache:/cache")
if [ -n "$data" ]; then options+=(--volume "$data:/data"); fi

if $dry_run; then
    printf '%s run' "$docker"
    for word in "${options[@]}"; do
        case $word in --*) printf ' \\\n    %s' "$word" ;; *) printf ' %q' "$word" ;; esac
    done
    printf ' \\\n    %q' "$image"
    printf ' %q' "$@"
    echo
    exit
fi

[ -z "$data" ] || [ -d "$data" ] || fail "--data: no folder $data"
command -v "$docker" > /dev/null ||
    fail "no $docker here: install it, set DOCKER to what you have, or look at the command with --dry-run"
said=$("$docker" info 2>&1) ||
    fail "$docker does not answer: start its service, or join the group docker. It says: $(tail -n 1 <<< "$said")"
"$docker" image inspect "$image" > /dev/null 2>&1 ||
    fail "no image $image here: build it with $docker build -f scripts/npu/Dockerfile -t $image ."
mkdir -p "$cache" # docker would make it, as root
exec "$docker" run "${options[@]}" "$image" "$@"
