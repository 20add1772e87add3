"""What `npu-smi info` prints on several generations of NPUs, and running it."""

import random
import stat
import string

import pytest

from mindone_audio.machine.npu_smi import parse_npu_smi, run_npu_smi

SMI_910B = """
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4               | OK            | 105.5       39                0    / 0             |
| 0                         | 0000:C1:00.0  | 5           0    / 0          6154 / 65536         |
+===========================+===============+====================================================+
| 3     910B4               | OK            | 98.0        41                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          46536/ 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 4123          | python                   | 6000                    |
| No running processes found in NPU 3                                                            |
+===========================+===============+====================================================+
"""
SMI_A3 = """
| npu-smi 25.3.rc1                 Version: 25.3.rc1                                             |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 1     Ascend910           | OK            | 160.7       45                0    / 0             |
| 0     2                   | 0000:9D:00.0  | 0           0    / 0          46536/ 65536         |
+------------------------------------------------------------------------------------------------+
| 1     Ascend910           | OK            | -           45                0    / 0             |
| 1     3                   | 0000:9F:00.0  | 0           0    / 0          2886 / 65536         |
"""
SMI_950 = """
| npu-smi 26.0.rc1                                 Version: 26.0.rc1                              |
| NPU ID | Name             | Health        | Power(W)    Temp(C)           Hugepages-Usage(page) |
|        |                  | Bus-Id        | NPU Util(%) Memory-Usage(MB)  HBM-Usage(MB)         |
+========+==================+===============+=====================================================+
| 2      | Ascend950PR      | Alarm         | 207.6       65                0     / 0             |
|        |                  | NA            | 7           0    / 0          5249  / 131072        |
+========+==================+===============+=====================================================+
| NPU ID                    | Process id    | Process name             | Process memory(MB)       |
| 0                         | 2066378       | pytest                   | 360                      |
"""
SMI_310P = """
| npu-smi 25.0.rc1.1                               Version: 25.0.rc1.1                                   |
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
| 8       310P3                 | OK              | NA           47                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1475 / 44280                            |
"""
NO_ACCESS = "DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\ndcmi module initialize failed. ret is -8005\n"


def devices(text: str) -> list[tuple]:
    found = parse_npu_smi(text).devices
    return [(npu.id, npu.npu, npu.name, npu.health, npu.memory_used_mb, npu.memory_total_mb) for npu in found]


def test_npu_smi_910b():
    assert devices(SMI_910B) == [(0, 0, "910B4", "OK", 6154, 65536), (3, 3, "910B4", "OK", 46536, 65536)]
    assert parse_npu_smi(SMI_910B).driver_version == "25.2.0"


def test_npu_smi_a3_has_two_chips_an_npu():
    assert devices(SMI_A3) == [(2, 1, "Ascend910", "OK", 46536, 65536), (3, 1, "Ascend910", "OK", 2886, 65536)]


def test_npu_smi_of_other_chips():
    assert devices(SMI_950) == [(2, 2, "Ascend950PR", "Alarm", 5249, 131072)]
    assert devices(SMI_310P) == [(0, 8, "310P3", "OK", 1475, 44280)]


def test_npu_smi_with_other_spacing():
    assert devices(SMI_910B.replace("  ", " ").replace("  ", " ")) == devices(SMI_910B)
    assert devices(SMI_A3.replace(" |", "|").replace("| ", "|   ")) == devices(SMI_A3)


def test_tool_and_driver_of_different_versions():
    text = SMI_910B.replace("npu-smi 25.2.0", "npu-smi 24.1.rc3")
    assert parse_npu_smi(text).driver_version == "25.2.0"


def test_run_npu_smi(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_npu_smi(tmp_path, {"PATH": ":"})
    tool = tmp_path / "usr/local/sbin/npu-smi"  # found there even though PATH lacks it
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho $1 $WORD\necho trouble >&2\nexit 1\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    assert run_npu_smi(tmp_path, {"PATH": "", "WORD": "given"}).split() == ["info", "given", "trouble"]


def test_random_tables_never_crash():
    chance = random.Random(2)
    lines = [line for text in (SMI_910B, SMI_A3, SMI_950, SMI_310P, NO_ACCESS) for line in text.splitlines()]
    for _ in range(300):
        text = "\n".join(chance.sample(lines, chance.randrange(8)))
        cut = chance.randrange(len(text) + 1)
        parse_npu_smi(text[:cut] + chance.choice(string.printable) + text[cut + 3 :])
