"""SeamlessM4T v2 against transformers on PyTorch: speech and text to text.

Of clips singles are compared: in a batch of transformers a shorter clip hears the padding of a longer one.
"""

import helpers_seamless as seamless
import numpy as np
import pytest
import torch
from helpers import relative_error
from helpers_bodies import wrong_parameters

from mindone_audio.generation.engine import Slots
from mindone_audio.models import AutoModelForAudioTextToText
from mindone_audio.models.seamless_m4t_v2.model import SeamlessM4Tv2ForTextToText

CLIPS, TEXTS = seamless.clips(60, 41, 9, 24, 77), seamless.texts(11, 5, 3, 17, 8)
TARGETS = ["fra", "deu", "__eng__", "fra", "deu"]
IDS = np.array([[3, seamless.CODES[name.strip("_")], 5 + place, 20, 9] for place, name in enumerate(TARGETS)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of the whole model, and PyTorch's."""
    folder = tmp_path_factory.mktemp("seamless")
    return folder, seamless.save_checkpoint(folder)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return checkpoint[1]


@pytest.fixture(scope="module")
def ours(checkpoint):
    return AutoModelForAudioTextToText.from_pretrained(checkpoint[0])


def padded(rows: list[np.ndarray], behind: float) -> dict[str, np.ndarray]:
    """Rows of unequal length and their mask, with something behind each that would be noticed."""
    longest = max(map(len, rows))
    edges = [((0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)) for row in rows]
    full = np.stack([np.pad(row, edge, constant_values=behind) for row, edge in zip(rows, edges)])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids" if rows[0].ndim == 1 else "input_features": full, "attention_mask": mask}


SOURCES = {"speech": (CLIPS, 3.0), "text": (TEXTS, 7)}
KINDS = pytest.mark.parametrize("kind", SOURCES)


def together(kind: str) -> dict[str, np.ndarray]:
    return padded(*SOURCES[kind])


def alone(kind: str, place: int) -> dict[str, torch.Tensor]:
    """One sample for PyTorch."""
    inputs = padded([SOURCES[kind][0][place]], 0)
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def scores(theirs, kind: str, place: int, ids=IDS) -> np.ndarray:
    with torch.no_grad():
        return theirs(**alone(kind, place), decoder_input_ids=torch.from_numpy(ids[[place]])).logits[0].numpy()


def written(theirs, kind: str, place: int, **settings) -> list[int]:
    return theirs.generate(**alone(kind, place), tgt_lang=TARGETS[place], generate_speech=False, **settings)[0][
        0
    ].tolist()


@KINDS
def test_scores_of_a_batch_are_those_of_each_alone_in_pytorch(ours, theirs, kind):
    made = ours(**together(kind), decoder_input_ids=IDS).logits.asnumpy()
    for place in range(len(TARGETS)):
        assert relative_error(made[place], scores(theirs, kind, place)) < 1e-5


def test_scores_of_a_batch_of_texts(ours, theirs):
    """Which transformers computes right; padded on the left too, and with prompts that are."""
    inputs = together("text")
    left = {name: value[:, ::-1].copy() for name, value in inputs.items()}
    for row, text in zip(left["input_ids"], TEXTS):
        row[-len(text) :] = text
    ids, mask = IDS.copy(), np.ones_like(IDS)
    ids[1], mask[1] = [0, 0, *IDS[1, :3]], [0, 0, 1, 1, 1]
    given = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(value) for name, value in (inputs | given).items()}).logits.numpy()
    for source in (inputs, left):
        made = ours(**source, **given).logits.asnumpy()
        assert relative_error(made[mask == 1], expected[mask == 1]) < 1e-5
    without = dict(inputs, input_ids=inputs["input_ids"] * inputs["attention_mask"], attention_mask=None)
    assert relative_error(ours(**without, **given).logits.asnumpy()[mask == 1], expected[mask == 1]) < 1e-5


@KINDS
def test_loss(ours, theirs, kind):
    labels = np.array([[41, 6, 3, -100]])
    with torch.no_grad():
        expected = theirs(**alone(kind, 0), labels=torch.from_numpy(labels))
    made = ours(**padded([SOURCES[kind][0][0]], 0), labels=labels)
    assert abs(float(expected.loss) - float(made.loss)) < 1e-5
    assert relative_error(made.logits.asnumpy(), expected.logits.numpy()) < 1e-5


def test_every_parameter_is_proved(checkpoint, theirs):
    """Those of the speech encoder are in test_conformer. Keys' biases change nothing behind a softmax."""
    ours = SeamlessM4Tv2ForTextToText.from_pretrained(checkpoint[0])
    expected, inputs = scores(theirs, "text", 0), padded(TEXTS[:1], 0)

    def run():
        return ours(**inputs, decoder_input_ids=IDS[:1]).logits.asnumpy()[0]

    unnoticed = wrong_parameters(ours, run, expected, 3e-5)
    assert [name for name in unnoticed if not name.endswith("k_proj.bias")] == []


WRITING = [
    {"no_repeat_ngram_size": 1},
    {"repetition_penalty": 1.9},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True, "repetition_penalty": 1.5},
]


@KINDS
@pytest.mark.parametrize("settings", WRITING)
def test_samples_together_are_each_alone_in_pytorch(ours, theirs, kind, settings):
    """Two at a time, so that a slot was another sample's before, each in a language of its own."""
    settings = {"max_new_tokens": 14, "suppress_tokens": [0], **settings}  # padding has no position in transformers
    made = ours.generate(**together(kind), generate_speech=False, tgt_lang=TARGETS, batch_size=2, **settings)
    expected = [written(theirs, kind, place, **settings) for place in range(len(TARGETS))]
    assert made[0] is made.sequences
    rows = made.sequences.asnumpy().tolist()
    assert [row[: len(one)] for row, one in zip(rows, expected)] == expected
    assert all(set(row[len(one) :]) <= {0} for row, one in zip(rows, expected))
    assert len({tuple(row[2:]) for row in rows}) >= 4


@KINDS
def test_interpreted_is_compiled(ours, kind):
    settings = {"tgt_lang": TARGETS, "max_new_tokens": 6, "no_repeat_ngram_size": 1}
    made = [
        ours.generate(**together(kind), generate_speech=False, compile=compile, **settings)[0].asnumpy()
        for compile in (True, False)
    ]
    assert np.array_equal(*made)


@KINDS
def test_a_sample_is_attended_to_no_further_than_its_end(ours, theirs, kind, monkeypatch):
    """Without the lengths of what is heard the tokens are other ones, so that the tests above would see it."""
    settings = {"max_new_tokens": 14, "suppress_tokens": [0], "no_repeat_ngram_size": 1}
    expected = [written(theirs, kind, place, **settings) for place in range(len(TARGETS))]
    monkeypatch.setattr(Slots, "hear", lambda *arguments: None)
    ours.weights_changed()  # so that its slots are made anew
    made = (
        ours.generate(**together(kind), generate_speech=False, tgt_lang=TARGETS, compile=False, **settings)[0]
        .asnumpy()
        .tolist()
    )
    ours.weights_changed()
    assert [row[: len(one)] for row, one in zip(made, expected)] != expected
