"""The scripts for clusters, as far as they can be checked without one: shellcheck, fields, flags, devices."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "scripts" / "cluster"


def test_the_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    scripts = [*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")]
    assert len(scripts) == 3
    done = subprocess.run([shellcheck, "--shell=bash", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_ascendjob_has_the_fields_of_its_schema():
    job = yaml.safe_load((CLUSTER / "mindcluster-ascendjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("mindxdl.gitee.com/v1", "AscendJob")
    assert job["metadata"]["labels"] == {"framework": "mindspore", "ring-controller.atlas": "ascend-910b"}
    spec = job["spec"]
    assert spec["schedulerName"] == "volcano" and spec["successPolicy"] == "AllWorkers"
    assert set(spec["replicaSpecs"]) == {"Scheduler", "Worker"}
    assert spec["runPolicy"]["schedulingPolicy"]["minAvailable"] == sum(
        role["replicas"] for role in spec["replicaSpecs"].values()
    )
    for role in spec["replicaSpecs"].values():
        (container,) = role["template"]["spec"]["containers"]
        assert container["name"] == "ascend"
        assert container["ports"] == [{"name": "ascendjob-port", "containerPort": 2222}]
    pod = spec["replicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"huawei.com/Ascend910": 8}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    done = subprocess.run(["bash", "-n", "-c", container["args"][0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def fake_environment(folder: Path, **variables) -> dict:
    """A machine whose `python` and `msrun` only print what they are given."""
    (folder / "bin").mkdir(exist_ok=True)
    show = 'echo "$(basename "$0") $* | $RANK_ID $RANK_SIZE $DEVICE_ID | $ASCEND_RT_VISIBLE_DEVICES'
    show += ' | $NODE_RANK | $MS_LOCAL_WORKER"\n'
    for name in ("python", "msrun", "srun", "scontrol"):
        body = f'#!/bin/bash\ncase "$1" in -c) echo "{folder}/bin" ;; *) {show} ;; esac\n'
        if name == "srun":
            body = '#!/bin/bash\nshift\nfor SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done\n'
        elif name == "scontrol":
            body = "#!/bin/bash\nprintf 'first\\nsecond\\n'\n"
        (folder / "bin" / name).write_text(body)
        (folder / "bin" / name).chmod(0o755)
    names = "RANK_ID RANK_SIZE DEVICE_ID ASCEND_RT_VISIBLE_DEVICES NODE_RANK NODES MASTER_ADDR PYTHON".split()
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return {**clean, "PATH": f"{folder}/bin:{os.environ['PATH']}", **variables}


def run_script(name, *arguments, **options):
    command = ["bash", str(CLUSTER / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_the_launchers_flags_and_devices(tmp_path):
    environment = fake_environment(tmp_path, ASCEND_RT_VISIBLE_DEVICES="3, 0-1", NODES="2", MASTER_ADDR="first")
    done = run_script("msrun.sh", "m.jsonl", "--out", "r s", env={**environment, "NODE_RANK": "1"})
    assert done.returncode == 0, done.stderr
    assert "--worker_num=6 --local_worker_num=3 --master_addr=first --master_port=8118 --node_rank=1" in done.stdout
    assert "--join=True python -m mindone_audio.cli batch m.jsonl --out r s" in done.stdout
    assert "| 0,1,3 | 1 | 3\n" in done.stdout  # the last number tells each rank how many share this node's cores
    for change, message in (
        ({}, "NODES=2 needs NODE_RANK"),
        ({"NODE_RANK": "2"}, "it is 0 to 1"),
        ({"NODE_RANK": "1", "MASTER_ADDR": ""}, "needs MASTER_ADDR"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "0,x"}, "should be like 0,1,2"),
        ({"NODES": "two"}, "are numbers"),
        ({"RANKS_PER_NODE": "0"}, "add --device cpu"),
    ):
        done = run_script("msrun.sh", "m.jsonl", env={**environment, **change})
        assert done.returncode == 2 and message in done.stderr, done.stderr


def test_cann_is_sourced_although_it_reads_unset_variables(tmp_path):
    (tmp_path / "set_env.sh").write_text("export LD_LIBRARY_PATH=$NOT_SET_AT_ALL:/cann; export RANK_ID=from-cann\n")
    environment = fake_environment(tmp_path, RANKS_PER_NODE="1", CANN_SET_ENV=str(tmp_path / "set_env.sh"))
    done = run_script("msrun.sh", "m.jsonl", env=environment)
    assert done.returncode == 0 and "| from-cann" in done.stdout


def test_slurm_and_modelarts(tmp_path):
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
    slurm |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NPUS": "0-7", "PYTHON": "python"}
    done = run_script("slurm.sbatch", "m.jsonl", "--out", "r", env=fake_environment(tmp_path, **slurm))
    assert done.returncode == 0, done.stderr
    launched = [line for line in done.stdout.splitlines() if line.startswith("msrun")]
    for node, line in enumerate(launched):
        assert (
            f"--worker_num=16 --local_worker_num=8 --master_addr=first --master_port=23456 --node_rank={node}" in line
        )
    assert len(launched) == 2 and "batch --merge r" in done.stdout.splitlines()[-1]

    once_a_device = {"RANK_ID": "9", "RANK_SIZE": "16", "ASCEND_DEVICE_ID": "1", "RANK_TABLE_FILE": "/a/folder"}
    done = run_script("modelarts.sh", "m.jsonl", env=fake_environment(tmp_path, **once_a_device))
    assert "mindone_audio.cli batch m.jsonl | 9 16 1 |" in done.stdout, done.stderr
    once_a_node = {"MA_RUN_METHOD": "msrun", "MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "a,b"}
    once_a_node["RANKS_PER_NODE"] = "8"
    done = run_script("modelarts.sh", "m.jsonl", env=fake_environment(tmp_path, **once_a_node))
    assert "--worker_num=16 --local_worker_num=8 --master_addr=a --master_port=8118 --node_rank=1" in done.stdout
