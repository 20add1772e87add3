"""The choice of the back end, and what is checked before a model is loaded on an NPU."""

import logging

import mindspore as ms
import pytest
from mindspore import Tensor

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.backbone import ops
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.machine import device, doctor
from mindone_audio.machine.doctor import ERROR, OK, WARNING, Finding


@pytest.fixture
def ascend(monkeypatch):
    """As if MindSpore computed on an NPU; nothing may be computed."""
    monkeypatch.setattr(device, "is_ascend", lambda: True)
    monkeypatch.delenv(doctor.SKIP_CHECKS, raising=False)
    device._check_versions.cache_clear()
    yield
    device._check_versions.cache_clear()


def test_the_device_in_use_may_be_asked_for_again():
    ops.silu(Tensor([1.0]))
    device.set_device("cpu")
    device.set_device("auto")
    assert not device.is_ascend()
    with pytest.raises(ValueError, match="unknown device 'cpu:x'"):
        device.set_device("cpu:x")
    with pytest.raises(ValueError, match="device 'ascend' is not available here"):
        device.set_device("ascend")


@pytest.mark.parametrize(("variable", "name", "expected"), [("3", "npu", 3), ("3", "ascend:1", 1), (None, "auto", 0)])
def test_which_npu(monkeypatch, variable, name, expected):
    monkeypatch.setenv("ASCEND_HOME_PATH", "/somewhere")
    monkeypatch.setattr(ms.device_context.ascend, "device_count", lambda: 8)
    monkeypatch.setattr(device, "_start", lambda limit: None)
    chosen = []
    monkeypatch.setattr(ms, "set_device", lambda *arguments: chosen.append(arguments))
    monkeypatch.delenv("DEVICE_ID", raising=False)
    if variable:
        monkeypatch.setenv("DEVICE_ID", variable)
    device.set_device(name)
    assert chosen == [("Ascend", expected)]


def test_a_device_id_that_is_no_number(monkeypatch):
    monkeypatch.setenv("DEVICE_ID", "0,1")
    with pytest.raises(ValueError, match="DEVICE_ID is '0,1'"):
        device.set_device("ascend")


def test_versions_that_are_too_old_stop_a_model_before_it_is_looked_for(ascend, monkeypatch):
    findings = [Finding(ERROR, "CANN", "8.0.0 is older than 8.1.RC1", "Install it"), Finding(OK, "driver", "fine")]
    monkeypatch.setattr(doctor, "check_ascend", lambda soc: findings)
    with pytest.raises(device.UnsupportedEnvironment, match="CANN: 8.0.0 is older.*Install it.*doctor.*SKIP_CHECKS=1"):
        AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())


def test_doubts_are_logged_once(ascend, monkeypatch, caplog):
    monkeypatch.setattr(doctor, "check_ascend", lambda soc: [Finding(WARNING, "driver", "not found", "Look")])
    with caplog.at_level(logging.WARNING, logger="mindone_audio"):
        device.check_versions()
        device.check_versions()
    assert caplog.messages == ["driver: not found. Look"]


def test_skipped_checks_say_so(ascend, monkeypatch, caplog):
    monkeypatch.setenv(doctor.SKIP_CHECKS, "1")
    monkeypatch.setattr(doctor, "check_ascend", lambda soc: 1 / 0)
    with caplog.at_level(logging.WARNING, logger="mindone_audio"):
        device.check_versions()
    assert "MINDONE_AUDIO_SKIP_CHECKS is set" in caplog.text


def test_nothing_is_checked_on_cpu(monkeypatch):
    monkeypatch.setattr(doctor, "check_ascend", lambda soc: 1 / 0)
    device._check_versions.cache_clear()
    device.check_versions()


def test_the_npu_that_mindspore_has_chosen_itself_is_started_too(monkeypatch):
    """Where its wheel finds an NPU, MindSpore's target is Ascend before anybody has set it."""
    started = []
    monkeypatch.setattr(ms, "get_context", {"device_target": "Ascend", "device_id": 0}.get)
    monkeypatch.setattr(ms, "set_device", lambda *arguments: pytest.fail("MindSpore may refuse what it has"))
    monkeypatch.setattr(device, "_start", started.append)
    monkeypatch.delenv("DEVICE_ID", raising=False)
    device.set_device("ascend", "40GB")
    assert started == [40.0]
