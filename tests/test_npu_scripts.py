"""The container for an NPU, as far as it can be checked without docker: linters, versions, the command of run.sh."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mindone_audio.machine.versions import PUBLISHED, satisfies, version_key

ROOT = Path(__file__).parent.parent
NPU = ROOT / "scripts" / "npu"
DOCKERFILE = NPU / "Dockerfile"


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def test_run_passes_shellcheck():
    done = subprocess.run([tool("shellcheck"), "--shell=bash", NPU / "run.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed: tests/requirements.txt has it")
def test_the_dockerfile_passes_hadolint():
    done = subprocess.run([tool("hadolint"), "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_versions_of_the_document_are_the_published_ones():
    page = (ROOT / "docs" / "npu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (2\.\d+\.\d+) \| (\S+) \| (\S*) ?\| `(\S+)` \|$", page, re.MULTILINE)
    assert {version: (cann, driver or None) for version, cann, driver, _ in rows} == {
        version: pair
        for version, pair in PUBLISHED.items()
        if version != "2.6.0"  # which the requirements refuse
    }
    for _, cann, _, tag in rows:
        cann, parts = cann.lower(), cann.count(".")
        assert re.fullmatch(rf"{re.escape(cann)}{'[.]0' if parts == 1 else ''}-910b-ubuntu22\.04-py3\.11", tag)
    first = arguments()
    assert rows[0][::3] == (first["MINDSPORE"], f"{first['CANN']}-{first['CHIP']}-{first['OS']}-py{first['PYTHON']}")
    assert f"pip install mindspore=={first['MINDSPORE']} -r requirements.txt" in page


# The Dockerfile


def instructions() -> list[tuple[str, str]]:
    """(FROM, its text) and so on, continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined if line.strip()]


def arguments() -> dict[str, str]:
    return dict(text.split("=", 1) for name, text in instructions() if name == "ARG")


def requirements(*files: Path) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_image_is_a_tag_of_the_community_images():
    kinds = [kind for kind, _ in instructions()]
    assert set(kinds[: kinds.index("FROM")]) == {"ARG"}
    image = dict(instructions())["FROM"]
    for name, value in arguments().items():
        image = image.replace(f"${{{name}}}", value)
    assert re.fullmatch(r"quay\.io/ascend/cann:9\.0\.0-910b-ubuntu22\.04-py3\.11", image)


def test_the_versions_are_a_published_pair_that_the_requirements_allow():
    values = arguments()
    cann, _ = PUBLISHED[values["MINDSPORE"]]
    assert values["CANN"] == cann
    (mindspore,) = [entry for entry in requirements(ROOT / "requirements.txt") if entry.name == "mindspore"]
    assert mindspore.specifier.contains(values["MINDSPORE"])
    assert satisfies(version_key(values["MINDSPORE"]), str(mindspore))
    (allowed,) = re.findall('requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert Requirement(f"python{allowed}").specifier.contains(values["PYTHON"])


def test_pip_installs_what_the_requirements_name():
    installed, files = [], []
    for words in (shlex.split(text) for kind, text in instructions() if kind == "RUN" and text.startswith("pip ")):
        assert words[:2] == ["pip", "install"] and "--no-cache-dir" in words
        for option, word in zip(words, words[1:]):
            if option == "-r":
                files.append(Path(word).name)
            elif not word.startswith("-") and word not in ("install", "."):
                installed.append(Requirement(word.replace("${MINDSPORE}", arguments()["MINDSPORE"])))
    assert [str(entry) for entry in installed] == [f"mindspore=={arguments()['MINDSPORE']}"]
    assert sorted(files) == ["cann-requirements.txt", "requirements.txt"]
    cann = {entry.name for entry in requirements(NPU / "cann-requirements.txt")}
    # CANN's installation guide; numpy is in requirements.txt, with the bound that is needed here.
    imported = "attrs cython decorator sympy cffi pyyaml pathlib2 psutil protobuf scipy requests absl-py"
    assert cann == set(imported.split())


def test_what_is_copied_is_there_and_not_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert ignored[0] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = [shlex.split(text)[:-1] for kind, text in instructions() if kind == "COPY"]
    for path in [path for paths in copied for path in paths if path != "." and not path.startswith("--")]:
        assert (ROOT / path).exists() and path.split("/")[0] in kept
    # What setuptools reads, what docs/npu.md runs, and what the cluster scripts are.
    assert kept == {
        *("LICENSE", "README.md", "pyproject.toml", "requirements.txt"),
        *("examples", "mindone_audio", "scripts", "tests"),
    }
    assert all((ROOT / path).exists() for path in kept)


def test_nothing_depends_on_a_shell_that_reads_its_startup_files():
    text = " ".join(text for _, text in instructions())
    assert "bashrc" not in text and "profile" not in text
    assert not {"ENTRYPOINT", "CMD"} & {kind for kind, _ in instructions()}  # the base image's sources set_env.sh


def test_the_user_can_write_where_the_container_starts():
    kinds = [kind for kind, _ in instructions()]
    assert kinds[-1] == "USER" and dict(instructions())["USER"] == "${USER_ID}:${GROUP_ID}"
    assert [text for kind, text in instructions() if kind == "WORKDIR"] == ["/workspace"]
    (environment,) = [text for kind, text in instructions() if kind == "ENV"]
    assert "HF_HOME=/cache/huggingface" in environment and "ASCEND_CACHE_PATH=/cache/ascend" in environment


@pytest.mark.parametrize(
    "given, done",
    [
        ({}, "mkdir -p /cache; chown -R 0:0 /workspace /cache"),
        (
            {"USER_ID": "1003", "GROUP_ID": "1004"},
            "mkdir -p /cache; getent group 1004; groupadd --gid 1004 mindone; "
            "useradd --non-unique --uid 1003 --gid 1004 --create-home --shell /bin/bash mindone; "
            "chown -R 1003:1004 /workspace /cache",
        ),
        (
            {"USER_ID": "1000", "GROUP_ID": "100", "USER_NAME": "ma-user"},  # ModelArts; the group is there
            "mkdir -p /cache; getent group 100; useradd --non-unique --uid 1000 --gid 100 "
            "--create-home --shell /bin/bash ma-user; chown -R 1000:100 /workspace /cache",
        ),
    ],
)
def test_the_user_is_made(tmp_path, given, done):
    """The step runs here with commands that only tell, in bash, which the base images have chosen."""
    step = next(text for kind, text in instructions() if kind == "RUN" and "chown" in text)
    for name in ("mkdir", "getent", "groupadd", "useradd", "chown"):
        answer = '[ "$2" = 100 ]' if name == "getent" else ":"
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*"\n{answer}\n')
        (tmp_path / name).chmod(0o755)
    environment = {**arguments(), **given, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    ran = subprocess.run(["bash", "-c", step], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert "; ".join(ran.stdout.splitlines()) == done


# run.sh

NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")


@pytest.fixture
def host(tmp_path):
    """A machine with a driver and two NPUs, and docker that says what it is asked."""
    root = tmp_path / "root"
    for path in (
        *(f"dev/{name}" for name in (*NODES, "davinci0", "davinci1")),
        "usr/local/Ascend/driver/version.info",
        "usr/local/sbin/npu-smi",
        "etc/ascend_install.info",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "usr/local/sbin/npu-smi").chmod(0o755)
    for path in ("usr/local/Ascend/driver/lib64", "usr/local/dcmi"):
        (root / path).mkdir()
    docker(tmp_path, 'echo "docker $*"')
    return root


def docker(folder: Path, body: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "docker").write_text(f"#!/bin/bash\n{body}\n")
    (folder / "bin" / "docker").chmod(0o755)


def run(host: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    given = {"ROOT": str(host), "HOME": str(host.parent / "home"), "PATH": f"{host.parent}/bin:/usr/bin:/bin"}
    return subprocess.run(
        ["bash", str(NPU / "run.sh"), *words], capture_output=True, text=True, timeout=60, env=given | environment
    )


def dry(host: Path, *words: str, **environment: str) -> list[str]:
    done = run(host, "--dry-run", *words, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("docker run \\\n")
    return shlex.split(done.stdout.replace("\\\n", " "))


def after(words: list[str], option: str) -> list[str]:
    return [value for name, value in zip(words, words[1:]) if name == option]


def test_the_command_that_starts_the_container(host):
    question = ["python", "-m", "mindone_audio", "ask", "a clip.wav", "What's that sound?"]
    words = dry(host, *question)
    assert words[:3] == ["docker", "run", "--rm"]
    assert after(words, "--device") == [f"/dev/{name}" for name in ("davinci0", *NODES)]
    assert set(after(words, "--volume")) == {
        "/etc/ascend_install.info:/etc/ascend_install.info:ro",
        "/usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64:ro",
        "/usr/local/Ascend/driver/version.info:/usr/local/Ascend/driver/version.info:ro",
        "/usr/local/dcmi:/usr/local/dcmi:ro",
        "/usr/local/sbin/npu-smi:/usr/local/bin/npu-smi:ro",
        f"{host.parent}/home/.cache/mindone-audio:/cache",
    }
    assert after(words, "--shm-size") == ["1g"] and "--network" not in words and "--privileged" not in words
    assert words[words.index("mindone-audio") :] == ["mindone-audio", *question]
    assert not (host.parent / "home").exists()  # a dry run makes nothing


def test_a_shell_without_a_command(host):
    assert dry(host)[-2:] == ["mindone-audio", "bash"]


def test_several_devices(host):
    words = dry(host, "--devices", "0,1")
    assert after(words, "--device")[:2] == ["/dev/davinci0", "/dev/davinci1"] and words == dry(host, "--devices=all")
    assert after(words, "--network") == after(words, "--ipc") == ["host"] and "--shm-size" not in words
    assert after(dry(host, "--devices", "1"), "--device")[0] == "/dev/davinci1"


def test_other_places_and_options(host):
    other = host / "opt/npu/driver"
    other.parent.mkdir(parents=True)
    (host / "usr/local/Ascend/driver").rename(other)
    (host / "etc/ascend_install.info").write_text("UserName=x\nDriver_Install_Path_Param=/opt/npu/\n")
    (host / "usr/local/sbin/npu-smi").rename(host / "opt/npu/npu-smi")
    words = dry(
        host,
        *("--image", "mine:1", "--data", "/my clips", "--shm", "16g", "--user", "1000:1001", "--cache", "/big", "--"),
        *("ls", "--help"),
        PATH=f"{host}/opt/npu:/usr/bin:/bin",
    )
    mounts = after(words, "--volume")
    assert "/opt/npu/driver/lib64:/usr/local/Ascend/driver/lib64:ro" in mounts
    assert "/opt/npu/driver/version.info:/opt/npu/driver/version.info:ro" in mounts
    assert "/my clips:/data" in mounts and "/big:/cache" in mounts
    assert "/opt/npu/npu-smi:/usr/local/bin/npu-smi:ro" in mounts
    assert after(words, "--shm-size") == ["16g"] and after(words, "--user") == ["1000:1001"]
    assert words[-3:] == ["mine:1", "ls", "--help"]


def test_folders_are_given_whole(host):
    """docker would take a relative path for the name of a volume."""
    mounts = after(dry(host, "--data", "clips", "--cache=../big"), "--volume")
    assert f"{os.getcwd()}/clips:/data" in mounts and f"{os.getcwd()}/../big:/cache" in mounts
    done = run(host, "--data", "no-such-folder")
    assert done.returncode == 2 and f"--data: no folder {os.getcwd()}/no-such-folder" in done.stderr


def test_the_group_of_the_devices_is_added(host):
    group = os.stat(host / "dev/davinci0").st_gid
    assert after(dry(host), "--group-add") == ([str(group)] if group else [])
    if os.getuid() == 0:
        os.chown(host / "dev/davinci0", 1000, 1000)
        assert after(dry(host), "--group-add") == ["1000"]


@pytest.mark.parametrize(
    "lacking, words, said",
    [
        ("dev/davinci*", (), "no NPU on this machine: there is no /dev/davinci0"),
        ("", ("--devices", "2"), "no NPU 2 on this machine, which has 0,1"),
        ("", ("--devices", "0,x"), "--devices 0,x: give numbers of NPUs, such as 0,1, or all"),
        ("", ("--devices", ""), "give numbers of NPUs"),
        ("", ("--devices",), "--devices needs a value"),
        ("", ("--gpus", "1"), "no option --gpus"),
        ("dev/devmm_svm", (), "/dev/devmm_svm is not there"),
        ("dev/hisi_hdc", (), "/dev/hisi_hdc is not there"),
        ("usr/local/Ascend/driver/lib64", (), "no Ascend driver in /usr/local/Ascend/driver"),
    ],
)
def test_what_is_missing_is_said_in_words(host, lacking, words, said):
    for path in host.glob(lacking) if lacking else ():
        path.rmdir() if path.is_dir() else path.unlink()
    done = run(host, "--dry-run", *words)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.startswith("run.sh: "), done.stderr


@pytest.mark.parametrize("path", ["usr/local/sbin/npu-smi", "usr/local/dcmi", "etc/ascend_install.info"])
def test_what_can_be_missing_is_a_warning(host, path):
    (host / path).rmdir() if (host / path).is_dir() else (host / path).unlink()
    done = run(host, "--dry-run")
    assert done.returncode == 0 and Path(path).name in done.stderr and f"/{path}:" not in done.stdout


def test_docker_is_asked_before_it_is_started(host):
    done = run(host, "doctor")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("docker run --rm")
    assert (host.parent / "home/.cache/mindone-audio").is_dir()
    docker(host.parent, 'case "$1" in info) exit 1 ;; *) echo started ;; esac')
    done = run(host)
    assert done.returncode == 2 and "docker does not answer" in done.stderr and "started" not in done.stdout
    docker(host.parent, 'case "$1" in image) exit 1 ;; *) echo started ;; esac')
    done = run(host, "--image", "mine")
    assert done.returncode == 2 and "no image mine here: build it with" in done.stderr
    done = run(host, DOCKER="no-such-docker")
    assert done.returncode == 2 and "no no-such-docker here" in done.stderr
    assert run(host, "--dry-run", DOCKER="no-such-docker").returncode == 0  # it needs none


def test_help(host):
    done = run(host, "--help")
    assert done.returncode == 0 and "--devices" in done.stdout and "#" not in done.stdout
