"""Evaluation by generated answers, and where figures are written."""

import csv
import errno
import sys
import types
from pathlib import Path

import pytest

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.finetune import AnswerCollator, Example, FinetuneSettings, LoraSettings, Trainer, add_lora
from mindone_audio.finetune.log import Log

AUDIO = Path(__file__).parent.parent / "examples" / "audio"
QUESTION = "What does the person say?"


@pytest.mark.slow
@pytest.mark.long
def test_answers_are_generated_and_scored(tmp_path):
    """The bundled checkpoint answers two of four rightly; a clip that cannot be read counts as answered wrongly."""
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    examples = [
        Example(str(AUDIO / "spoken_command.wav"), QUESTION, "Open the door!"),
        Example(str(AUDIO / "spoken_digits.flac"), QUESTION, "seven three nine"),
        Example(str(AUDIO / "spoken_digits.flac"), QUESTION, "seven two nine one"),
        Example(str(tmp_path / "broken.wav"), QUESTION, "nothing at all"),
    ]
    model = AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    collator = AnswerCollator(processor, generation_config=model.generation_config, on_bad_clip="skip")
    settings = FinetuneSettings(
        str(tmp_path / "out"), max_steps=1, metrics=("exact_match", "wer"), per_device_eval_batch_size=2
    )
    found = Trainer(add_lora(model, LoraSettings(r=2)), processor, collator, settings, examples, examples).evaluate()
    assert found["eval_exact_match"] == pytest.approx(2 / 4)
    assert found["eval_wer"] == pytest.approx((0 + 0 + 2 + 3) / (3 + 3 + 4 + 3))
    sums, tokens = 0.0, 0
    for example in examples[:3]:
        batch = collator([example])
        count = int((batch["labels"] != -100).sum())
        sums, tokens = sums + float(model(**batch).loss.asnumpy()) * count, tokens + count
    assert found["eval_loss"] == pytest.approx(sums / tokens, rel=1e-4)
    assert [name for name, _ in collator.skipped] == ["an example"]


def test_a_full_disk_leaves_the_lines_of_earlier_steps(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Log(tmp_path, ("csv",), 0, True) as log:
        log.write({"step": 1, "loss": 2.5})
        before = (tmp_path / "log.csv").read_text()
        monkeypatch.setattr(csv.DictWriter, "writerows", full)
        with pytest.raises(OSError, match="No space"):
            log.write({"step": 2, "loss": 2.0})
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    assert (tmp_path / "log.csv").read_text() == before


def test_tensorboard_gets_what_the_csv_gets(tmp_path, monkeypatch, caplog):
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, *event):
            seen.append(event)

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    with Log(tmp_path, ("csv", "tensorboard"), 0, True) as log:
        log.write({"step": 1, "loss": 2.5, "epoch": 0.5})
        log.write({"step": 2, "eval_loss": 1.5})
    assert seen == [str(tmp_path), ("loss", 2.5, 1), ("epoch", 0.5, 1), ("eval_loss", 1.5, 2), "closed"]
    with open(tmp_path / "log.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "1", "loss": "2.5", "epoch": "0.5", "eval_loss": ""},
            {"step": "2", "loss": "", "epoch": "", "eval_loss": "1.5"},
        ]
    with Log(tmp_path / "none", (), 0, True) as log:
        assert log.write({"step": 1}) == {"step": 1}
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Log(tmp_path, ("tensorboard",), 0, True):
        assert "TensorBoard is not installed" in caplog.text
