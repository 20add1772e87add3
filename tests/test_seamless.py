"""SeamlessM4T v2 against transformers on PyTorch: speech and text to text.

Of clips singles are compared: in a batch of transformers a shorter clip hears the padding of a longer one.
"""

import inspect
import io
import json
import re
import shutil
import sys
from pathlib import Path

import helpers_peft
import helpers_seamless as seamless
import mindspore as ms
import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
import transformers
from ascend_branch import as_on_ascend
from helpers import relative_error
from helpers_bodies import wrong_parameters
from safetensors.numpy import load_file, save_file

from mindone_audio import cli, pipeline, pipelines
from mindone_audio.adapters.lora import load_adapter
from mindone_audio.backbone.layers import name_parameters
from mindone_audio.commands.warm_up import _warm_up
from mindone_audio.generation.engine import EncodeAudio, Slots, WriteContext
from mindone_audio.models import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.models.seamless_m4t_v2.model import (
    SeamlessM4Tv2ForSpeechToText,
    SeamlessM4Tv2ForTextToText,
    SeamlessM4Tv2Model,
)
from mindone_audio.models.seamless_m4t_v2.sizes import (
    check_config,
    decoder_config,
    speech_encoder_config,
    text_encoder_config,
)
from mindone_audio.models.seamless_m4t_v2.text_encoder import EncodeText
from mindone_audio.pipelines import SpeechToTextPipeline
from mindone_audio.weights.graph_key import graph_key
from mindone_audio.weights.hub import CheckpointError

ROOT = Path(__file__).parent.parent
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
    made = ours.generate(generate_speech=False, **together(kind), tgt_lang=TARGETS, batch_size=2, **settings)
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
        ours.generate(generate_speech=False, **together(kind), compile=compile, **settings)[0].asnumpy()
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
        ours.generate(generate_speech=False, **together(kind), tgt_lang=TARGETS, compile=False, **settings)[0]
        .asnumpy()
        .tolist()
    )
    ours.weights_changed()
    assert [row[: len(one)] for row, one in zip(made, expected)] != expected


def test_sampling_is_repeatable_and_as_in_the_other_batch(ours):
    settings = {"tgt_lang": "fra", "do_sample": True, "seed": 5, "max_new_tokens": 8}
    made = ours.generate(generate_speech=False, **together("text"), **settings)[0].asnumpy()
    single = ours.generate(generate_speech=False, **padded(TEXTS[1:2], 0), **settings)[0].asnumpy()
    assert np.array_equal(made[1], single[0])
    assert not np.array_equal(
        made, ours.generate(generate_speech=False, **together("text"), **{**settings, "seed": 6})[0].asnumpy()
    )


def test_streams(ours):
    settings = {"tgt_lang": TARGETS, "max_new_tokens": 9, "no_repeat_ngram_size": 1}
    whole = ours.generate(generate_speech=False, **together("speech"), **settings)[0].asnumpy()
    steps = list(ours.stream(**together("speech"), **settings))
    assert np.array_equal(np.stack(steps, 1), whole[:, 2:])

    class Heard(list):
        put, ended = list.append, False

        def end(self):
            self.ended = True

    streamer, first = Heard(), padded(CLIPS[:1], 0)
    ours.generate(generate_speech=False, **first, streamer=streamer, **{**settings, "tgt_lang": "fra"})
    told = np.concatenate([np.array(step).reshape(-1) for step in streamer])
    assert streamer.ended and told.tolist() == whole[0, : len(told)].tolist()
    with pytest.raises(ValueError, match="a streamer takes one sample, not 5"):
        ours.generate(generate_speech=False, **together("speech"), streamer=streamer, tgt_lang="fra")
    with pytest.raises(ValueError, match="num_beams=2 cannot be streamed"):
        ours.stream(**first, tgt_lang="fra", num_beams=2)


def test_long_texts_and_clips_make_larger_contexts(ours, theirs):
    """As many positions as a context has at first are too few; later calls keep what is there."""
    (text,), settings = seamless.texts(280), {"max_new_tokens": 4, "suppress_tokens": [0], "no_repeat_ngram_size": 1}
    before = ours.context_positions
    made = (
        ours.generate(generate_speech=False, **padded([text], 0), tgt_lang="fra", compile=False, **settings)[0]
        .asnumpy()[0]
        .tolist()
    )
    assert before == 256 and ours.context_positions == 384
    inputs = {"input_ids": torch.from_numpy(text)[None], "tgt_lang": "fra", "generate_speech": False}
    assert made == theirs.generate(**inputs, **settings)[0][0].tolist()
    (clip,) = seamless.clips(1700)  # beyond the longest that is expected
    expected = theirs.generate(
        input_features=torch.from_numpy(clip)[None], tgt_lang="fra", generate_speech=False, **settings
    )
    made = ours.generate(generate_speech=False, input_features=clip[None], tgt_lang="fra", compile=False, **settings)
    assert made[0].asnumpy().tolist() == expected[0].tolist() and ours.context_positions == 384
    ours._context_positions = before
    ours.weights_changed()


# Checkpoints


CLASSES = {
    SeamlessM4Tv2ForSpeechToText: ("speech", transformers.SeamlessM4Tv2ForSpeechToText),
    SeamlessM4Tv2ForTextToText: ("text", transformers.SeamlessM4Tv2ForTextToText),
}


@pytest.mark.parametrize("kind_class", CLASSES)
def test_a_class_of_one_encoder(checkpoint, theirs, tmp_path, kind_class):
    """It reads the whole model's folder, and saves what transformers' class of its name loads and says."""
    kind, torch_class = CLASSES[kind_class]
    ours = kind_class.from_pretrained(checkpoint[0])
    assert (
        relative_error(ours(**together(kind), decoder_input_ids=IDS).logits[0].asnumpy(), scores(theirs, kind, 0))
        < 1e-5
    )
    settings = {"max_new_tokens": 8, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}
    expected = written(theirs, kind, 0, **settings)
    first = padded(SOURCES[kind][0][:1], 0)
    assert (
        ours.generate(generate_speech=False, **first, tgt_lang="fra", compile=False, **settings).asnumpy()[0].tolist()
        == expected
    )
    ours.save_pretrained(tmp_path)
    again = torch_class.from_pretrained(tmp_path).eval()
    state = theirs.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert again.generate(**alone(kind, 0), tgt_lang="fra", **settings)[0].tolist() == expected
    again.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path, tmp_path / "theirs"):
        assert type(AutoModelForAudioTextToText.from_pretrained(folder)) is kind_class


@pytest.mark.parametrize("kind_class", CLASSES)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["fc1", "fc2", "linear_q", "out_proj", "output_dense"]])
def test_an_adapter_of_peft(checkpoint, theirs, tmp_path, kind_class, targets):
    """Its layers have transformers' names, which differ here in the middle."""
    kind, torch_class = CLASSES[kind_class]
    adapted = helpers_peft.torch_adapter(torch_class.from_pretrained(checkpoint[0]), target_modules=targets)
    adapted.save_pretrained(tmp_path)
    ours = load_adapter(kind_class.from_pretrained(checkpoint[0]), tmp_path).get_base_model()
    made = ours(**padded(SOURCES[kind][0][:1], 0), decoder_input_ids=IDS[:1]).logits.asnumpy()[0]
    assert relative_error(made, scores(adapted, kind, 0)) < 1e-5 < 1e-2 < relative_error(made, scores(theirs, kind, 0))


def test_a_whole_model_that_was_saved(ours, theirs, tmp_path):
    ours.save_pretrained(tmp_path)
    again = transformers.SeamlessM4Tv2Model.from_pretrained(tmp_path)
    state = again.state_dict()
    for name, value in theirs.state_dict().items():
        if not name.startswith(("t2u_model", "vocoder")):
            assert torch.equal(state[name], value), name


@pytest.mark.parametrize("names", [("lm_head.weight",), ("text_encoder.embed_tokens.weight",), ("shared.weight", "*")])
def test_the_embeddings_under_any_name(checkpoint, ours, tmp_path, names):
    """Where there are several, that of the table that transformers ties the others to is read."""
    for file in ("config.json", "generation_config.json"):
        shutil.copy(checkpoint[0] / file, tmp_path)
    tensors = load_file(checkpoint[0] / "model.safetensors")
    table = tensors.pop("shared.weight")
    tensors[names[0]] = table
    if "*" in names:
        tensors |= {"lm_head.weight": table + 1, "text_decoder.embed_tokens.weight": table + 1}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    expected = ours.language_model.model.embed_tokens.weight.asnumpy()
    for kind in (SeamlessM4Tv2Model, SeamlessM4Tv2ForSpeechToText):
        again = kind.from_pretrained(tmp_path)
        assert np.array_equal(again.language_model.model.embed_tokens.weight.asnumpy(), expected)


def test_missing_and_unexpected_weights(checkpoint, tmp_path):
    shutil.copy(checkpoint[0] / "config.json", tmp_path)
    tensors = load_file(checkpoint[0] / "model.safetensors")
    tensors["speech_encoder.other.weight"] = tensors.pop("text_decoder.layers.1.cross_attention.q_proj.weight")
    del tensors["shared.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as refused:
        SeamlessM4Tv2Model.from_pretrained(tmp_path)
    assert "2 missing: language_model.model.embed_tokens.weight, language_model.model.layers.1.enc" in str(
        refused.value
    )
    assert "1 unexpected: audio_tower.other.weight" in str(refused.value)
    with pytest.raises(CheckpointError, match="2 missing"):
        SeamlessM4Tv2ForTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("speech_encoder_hidden_act", "gelu"),
        ("position_embeddings_type", "relative"),
        ("layer_norm_eps", 1e-6),
        ("tie_word_embeddings", False),
    ],
)
def test_refused_configs(field, value):
    with pytest.raises(ValueError, match=f"config.json.{field} {value!r} is not supported"):
        SeamlessM4Tv2Model(seamless.config(**{field: value}))


TRAINING, TOKENS, SPEECH = "only while training", "of generation", "of speech output"
IGNORED = {
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"), TRAINING),
    **dict.fromkeys(("decoder_layerdrop", "speech_encoder_dropout", "speech_encoder_layerdrop"), TRAINING),
    **dict.fromkeys(("adaptor_dropout", "initializer_range"), TRAINING),
    **dict.fromkeys(("max_new_tokens", "bos_token_id", "eos_token_id", "decoder_start_token_id"), TOKENS),
    **dict.fromkeys(("use_cache", "is_encoder_decoder"), "what there is anyway"),
    **dict.fromkeys(("sampling_rate", "char_vocab_size", "leaky_relu_slope", "unit_embed_dim"), SPEECH),
    **dict.fromkeys(("lang_embed_dim", "spkr_embed_dim", "var_pred_dropout", "variance_predictor_kernel_size"), SPEECH),
    **dict.fromkeys(("unit_hifi_gan_vocab_size",), SPEECH),
}
OTHER = {"speech_encoder_hidden_act": "gelu", "activation_function": "gelu", "position_embeddings_type": "rotary"}


@pytest.mark.parametrize("field", inspect.signature(transformers.SeamlessM4Tv2Config).parameters)
def test_every_field_of_the_config(field):
    """It makes another model, or is refused, or ignored for a reason that stands here."""
    if field in IGNORED or field == "kwargs" or field.startswith(("t2u_", "vocoder_", "upsample_", "resblock_")):
        return

    def sizes(config):
        check_config(config)
        return [make(config) for make in (speech_encoder_config, text_encoder_config, decoder_config)]

    plain = seamless.config()
    value = getattr(plain, field)
    other = OTHER[field] if field in OTHER else not value if isinstance(value, bool) else value * 2 or 7
    try:
        assert sizes(seamless.config(**{field: other})) != sizes(plain)
    except ValueError as error:
        assert f"config.json.{field}" in str(error)


def test_an_activation_that_is_not_there():
    with pytest.raises(ValueError, match="activation_function 'selu' is not supported: known are gelu, relu"):
        SeamlessM4Tv2Model(seamless.config(activation_function="selu"))


@pytest.mark.parametrize(
    "changes", [{"activation_function": "gelu", "scale_embedding": False}, {"add_adapter": False, "pad_token_id": 2}]
)
def test_other_fields(tmp_path, changes):
    """PyTorch's class is given no mask: with one, it counts positions as if there always were an adapter."""
    theirs = seamless.torch_model(1, **changes)
    theirs.save_pretrained(tmp_path)
    ours = SeamlessM4Tv2Model.from_pretrained(tmp_path)
    for kind in SOURCES:
        made = ours(**together(kind), decoder_input_ids=IDS).logits.asnumpy()
        for place in range(3):
            inputs = {name: value for name, value in alone(kind, place).items() if name != "attention_mask"}
            with torch.no_grad():
                expected = theirs(**inputs, decoder_input_ids=torch.from_numpy(IDS[[place]])).logits[0].numpy()
            assert relative_error(made[place], expected) < 1e-5


def test_version_1_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seamless_m4t"}))
    with pytest.raises(ValueError, match="v1 is another model: use facebook/seamless-m4t-v2-large"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path)


# What cannot be


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tgt_lang": None}, "tgt_lang is missing: give the language to write, one of deu, eng, fra"),
        ({"tgt_lang": "fr"}, "tgt_lang='fr' is no language that the model writes: known are deu, eng, fra"),
        ({"tgt_lang": 5}, "tgt_lang=5 is no language"),
        ({"tgt_lang": ["fra"] * 2}, "2 languages as tgt_lang for 5 samples"),
        ({"input_ids": None}, "neither of input_ids and input_features were given"),
        ({"input_features": CLIPS[0][None]}, "both of input_ids and input_features were given"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences=2 is not supported"),
        ({"temperture": 2}, "temperture=2 is not supported"),
        ({"attention_mask": np.ones((5, 2))}, r"attention_mask \(5, 2\): both \(texts, tokens\)"),
        ({"input_ids": np.full((5, 17), 44)}, "input_ids hold 44, and this model has the tokens 0 to 43"),
        ({"attention_mask": np.arange(5)[:, None] * np.ones((1, 17))}, "text 0 has 0 tokens, the model reads 1 to 300"),
        ({"input_ids": np.full((1, 301), 5), "attention_mask": None}, "text 0 has 301 tokens"),
    ],
)
def test_texts_that_cannot_be_translated(ours, changes, message):
    with pytest.raises(ValueError, match=message):
        ours.generate(generate_speech=False, **{**together("text"), "tgt_lang": "fra", **changes})


@pytest.mark.parametrize(
    "features, mask, message",
    [
        (np.zeros((1, 9, 80), np.float32), None, r"shape \(1, 9, 80\), this model takes \(clips, frames, 160\)"),
        (np.zeros((9, 160), np.float32), None, r"input_features have shape \(9, 160\)"),
        (np.zeros((1, 9, 160), np.float32), np.ones((1, 8)), r"attention_mask of shape \(1, 8\)"),
        (np.zeros((1, 9, 160), np.float32), np.arange(9)[None] > 3, "clips are padded on the right"),
        (np.zeros((1, 9, 160), np.float32), np.zeros((1, 9)), "none is empty"),
    ],
)
def test_clips_that_cannot_be_translated(ours, features, mask, message):
    for call in (ours.generate, ours):
        more = {"tgt_lang": "fra"} if call is not ours else {"decoder_input_ids": IDS[:1]}
        with pytest.raises(ValueError, match=message):
            call(input_features=features, attention_mask=mask, **more)


def test_what_the_other_class_is_for(checkpoint):
    for kind_class, (kind, _) in CLASSES.items():
        other = "text" if kind == "speech" else "speech"
        with pytest.raises(ValueError, match=f"{kind_class.__name__} takes input_\\w+, and was given"):
            kind_class.from_pretrained(checkpoint[0]).generate(**together(other), tgt_lang="fra")


def test_a_checkpoint_without_languages(checkpoint, theirs):
    ours = SeamlessM4Tv2ForTextToText.from_pretrained(checkpoint[0])
    ours.generation_config.text_decoder_lang_to_code_id = None
    with pytest.raises(ValueError, match="generation_config.json has no text_decoder_lang_to_code_id"):
        ours.generate(generate_speech=False, **padded(TEXTS[:1], 0), tgt_lang="fra")
    settings = {"max_new_tokens": 5, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}
    made = ours.generate(generate_speech=False, **padded(TEXTS[:1], 0), compile=False, **settings).asnumpy()
    expected = theirs.generate(**alone("text", 0), generate_speech=False, **settings)[0]
    assert made.tolist() == expected.tolist()


# An NPU's branch, on this CPU


@KINDS
def test_the_branch_of_an_npu(checkpoint, theirs, kind):
    settings = {"max_new_tokens": 8, "suppress_tokens": [0], "no_repeat_ngram_size": 1}
    expected = [written(theirs, kind, place, **settings) for place in range(2)]
    with as_on_ascend():
        ours = SeamlessM4Tv2Model.from_pretrained(checkpoint[0])
        made = (
            ours.generate(generate_speech=False, **padded(SOURCES[kind][0][:2], 3), tgt_lang=TARGETS[:2], **settings)[0]
            .asnumpy()
            .tolist()
        )
    assert [row[: len(one)] for row, one in zip(made, expected)] == expected


@KINDS
@pytest.mark.parametrize("half", ["audio_tower", "language_model"])
def test_parts_in_two_dtypes(checkpoint, theirs, kind, half):
    """The text encoder counts as the speech encoder does."""
    with as_on_ascend():
        ours = SeamlessM4Tv2Model.from_pretrained(checkpoint[0], mindspore_dtype={half: ms.float16, "": ms.float32})
        first = padded(SOURCES[kind][0][:1], 0)
        made = ours(**first, decoder_input_ids=IDS[:1]).logits.asnumpy()[0]
        assert 1e-5 < relative_error(made, scores(theirs, kind, 0)) < 2e-2
        assert ours.generate(generate_speech=False, **first, tgt_lang="fra", max_new_tokens=2, min_new_tokens=2)[
            0
        ].shape == (1, 4)


# The processor


def samples(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=length) * 0.1).astype(np.float32) for length in lengths]


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint[0])


WORDS = ["abc de", " a", "hello world cde"]


def test_the_processor_is_transformers(checkpoint, processor):
    theirs = transformers.SeamlessM4TProcessor.from_pretrained(checkpoint[0])
    for language in ("eng", "__fra__"):
        made = processor(WORDS, src_lang=language)
        expected = theirs(text=WORDS, src_lang=language, return_tensors="np")
        for name in ("input_ids", "attention_mask"):
            assert made[name].dtype == np.int64 and np.array_equal(made[name], expected[name])
    assert np.array_equal(processor(WORDS, tgt_lang="deu")["input_ids"], processor(WORDS, src_lang="eng")["input_ids"])
    clips = samples(9000, 5000, 560, 561)
    for keyword in ("audio", "audios"):
        made, expected = processor(**{keyword: clips}), theirs(audio=clips, sampling_rate=16000, return_tensors="np")
        assert made["input_features"].dtype == np.float32 and made["attention_mask"].dtype == np.int64
        for name in made:
            assert np.array_equal(made[name], expected[name])
    assert processor.batch_decode(processor(WORDS)["input_ids"], skip_special_tokens=True) == ["abc de", "a", WORDS[2]]


def test_the_processor_of_a_sentencepiece_model(processor, tmp_path, monkeypatch):
    """Which is what the published checkpoint has; it is saved with a tokenizer.json."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world cde", "abc de fgh"] * 9),
        model_prefix=str(tmp_path / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    names = [f"__{language}__" for language in seamless.LANGUAGES]
    model = str(tmp_path / "sentencepiece.bpe.model")
    slow = transformers.SeamlessM4TTokenizer(model, additional_special_tokens=names)
    slow.save_pretrained(tmp_path)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(tmp_path)
    load = type(processor).from_pretrained
    ours = load(tmp_path)
    expected = slow(WORDS, src_lang="deu")
    assert ours(WORDS, src_lang="deu")["input_ids"].tolist() == expected["input_ids"]
    assert ours.languages == processor.languages == ["deu", "eng", "fra"]
    ours.save_pretrained(tmp_path / "fast")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    again = load(tmp_path / "fast")
    assert again(WORDS, src_lang="deu")["input_ids"].tolist() == expected["input_ids"]
    with pytest.raises(OSError, match="pip install sentencepiece"):
        load(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "neither of text and audio were given"),
        ({"text": "a", "audio": samples(900)[0]}, "both of text and audio were given"),
        ({"audio": samples(900), "audios": samples(900)}, "audio= and audios= were both given"),
        ({"text": ["a", " \n"]}, "text 1 is empty"),
        ({"text": 5}, "text must be a string"),
        ({"text": "a", "src_lang": "en"}, "src_lang='en' is no language of this tokenizer: known are deu, eng, fra"),
        ({"audio": samples(900)[0], "tgt_lang": "ita"}, "tgt_lang='ita' is no language"),
        ({"text": "a", "src_lang": 5}, "src_lang=5 is no language"),
        ({"audio": samples(900, 559)}, "audio clip 1 has 559 samples, too few for one audio token: give at least 560"),
        ({"audio": samples(0)[0]}, "holds no samples"),
        ({"audio": samples(900)[0], "sampling_rate": 8000}, "sampling_rate=8000"),
        ({"text": "a", "return_tensors": "pt"}, "return_tensors='pt'"),
    ],
)
def test_what_the_processor_refuses(processor, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(**arguments)


def test_what_the_processor_does_not_know(processor):
    with pytest.raises(TypeError, match="does not know padding"):
        processor("a", padding=True)
    with pytest.raises(ValueError, match="answers no questions"):
        processor.apply_chat_template([{"role": "user", "content": "?"}])


# Pipelines


@pytest.fixture(scope="module")
def pipes(ours, processor):
    """By task."""
    tasks = ("automatic-speech-recognition", "translation")
    return {task: pipeline(task, model=ours, processor=processor) for task in tasks}


def said(theirs, processor, tgt_lang: str, inputs: dict, **settings) -> str:
    """What PyTorch's model writes of one input."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    found = theirs.generate(**tensors, tgt_lang=tgt_lang, generate_speech=False, **settings)
    return processor.decode(found[0][0].numpy(), skip_special_tokens=True).strip()


ASKED = {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}


def test_texts_are_translated_as_by_pytorch(pipes, theirs, processor):
    pipe, texts = pipes["translation"], ["abc de", "hello world cde", "a"]
    answers = pipe(texts, src_lang="deu", tgt_lang="fra", batch_size=2, **ASKED)
    expected = [said(theirs, processor, "fra", processor(text, src_lang="deu"), **ASKED) for text in texts]
    assert answers["translation_text"] == answers["generated_text"] == expected and len(set(expected)) == 3
    one = pipe(texts[1], src_lang="deu", tgt_lang="fra", generate_kwargs=ASKED)
    assert one["translation_text"] == expected[1]
    for more in ({}, {"num_beams": 2}):
        whole = pipe(texts[0], tgt_lang="deu", **ASKED, **more)[0]["generated_text"]
        assert "".join(pipe(texts[0], tgt_lang="deu", stream=True, **ASKED, **more)) == whole
    stop = expected[1][2:4]
    stopped = pipe(texts[1], src_lang="deu", tgt_lang="fra", stop_sequence=stop, **ASKED)["translation_text"]
    assert stopped == expected[1][: expected[1].index(stop)].strip()


def test_speech_is_transcribed_and_translated_as_by_pytorch(pipes, theirs, processor):
    clips = samples(9000, 5000)
    expected = [said(theirs, processor, "fra", processor(audio=clip), **ASKED) for clip in clips]
    for named in ({"language": "fra"}, {"tgt_lang": "__fra__"}, {"generate_kwargs": {"tgt_lang": "fra"}}):
        answers = pipes["automatic-speech-recognition"](clips, **named, **ASKED)
        assert answers["text"] == answers["generated_text"] == expected
    assert answers[0]["chunks"] == [{"start": 0, "end": 0.5625, "timestamp": (0, 0.5625), "text": expected[0]}]
    answers = pipes["translation"]([{"audio": clip} for clip in clips], tgt_lang="fra", **ASKED)
    assert answers["translation_text"] == expected and len(set(expected)) == 2
    assert "".join(pipes["translation"](clips[0], tgt_lang="fra", stream=True, **ASKED)) == expected[0]


def test_a_long_clip_is_cut_into_windows(pipes, theirs, processor):
    (clip,) = samples(24_000)
    clip[13_000:14_000] = 0  # a pause, which is where it is cut
    answer = pipes["automatic-speech-recognition"](clip, language="deu", window=1.0, **ASKED)
    parts = [(chunk["start"], chunk["end"]) for chunk in answer[0]["chunks"]]
    assert len(parts) == 2 and parts[0][0] == 0 and 13_000 <= parts[0][1] * 16_000 <= 14_000 and parts[1][1] == 1.5
    windows = [clip[round(start * 16_000) : round(end * 16_000)] for start, end in parts]
    expected = [said(theirs, processor, "deu", processor(audio=window), **ASKED) for window in windows]
    assert answer["text"] == " ".join(filter(None, expected))


@pytest.mark.parametrize(
    "task, inputs, settings, error, message",
    [
        ("translation", "abc", {}, ValueError, "tgt_lang is missing"),
        ("translation", ["abc", samples(900)[0]], {"tgt_lang": "fra"}, ValueError, "in one list"),
        ("translation", "tests/conftest.py", {"tgt_lang": "fra"}, ValueError, "is where a clip is, and no text"),
        ("translation", "https://x.org/a.wav", {"tgt_lang": "fra"}, ValueError, "is where a clip is"),
        ("translation", samples(900)[0], {"tgt_lang": "fra", "src_lang": "eng"}, ValueError, "hears the language"),
        ("translation", ["a", " "], {"tgt_lang": "fra"}, ValueError, "input 1: text 0 is empty"),
        ("translation", "a", {"tgt_lang": "fra", "temperture": 1}, ValueError, "temperture=1"),
        ("translation", ["a"], {"tgt_lang": "fra", "stream": True}, ValueError, "takes one input"),
        (
            "automatic-speech-recognition",
            samples(900)[0],
            {},
            ValueError,
            "language is missing: known are deu, eng, fra",
        ),
        ("automatic-speech-recognition", samples(900)[0], {"language": "xxx"}, ValueError, "'xxx' is no language"),
        (
            "automatic-speech-recognition",
            samples(900)[0],
            {"language": "fra", "tgt_lang": "deu"},
            ValueError,
            "several languages to write, 'fra' and 'deu'",
        ),
        ("automatic-speech-recognition", samples(900)[0], {"language": "fra", "task": "translate"}, ValueError, "task"),
        ("automatic-speech-recognition", samples(900)[0], {"language": "fra", "text": "?"}, ValueError, "no questions"),
        ("automatic-speech-recognition", samples(900)[0], {"language": "fra", "prompt": "?"}, ValueError, "prompt"),
        ("automatic-speech-recognition", "none.wav", {"language": "fra"}, OSError, "none.wav"),
    ],
)
def test_what_the_pipelines_refuse(pipes, task, inputs, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        pipes[task](inputs, **settings)


def test_a_failed_input_stops_no_other(pipes):
    answers = pipes["translation"](["a", ""], tgt_lang="fra", on_error="return", **ASKED)
    assert answers[0]["translation_text"] and answers[1] == {
        "generated_text": None,
        "error": "text 0 is empty: leave it out",
    }


def test_tasks_of_the_model(checkpoint, ours, processor):
    assert type(pipeline(model=ours, processor=processor)) is SpeechToTextPipeline
    with pytest.raises(
        ValueError, match="a seamless_m4t_v2 model transcribes and translates, and answers no questions"
    ):
        pipeline("audio-text-to-text", model=checkpoint[0])
    with pytest.raises(ValueError, match="takes no vocoder"):
        pipeline("translation", model=checkpoint[0], vocoder="x")


def test_graphs_are_kept(checkpoint):
    """All of them have keys, the same when a checkpoint is loaded again, of which no two are equal."""
    found = []
    for _ in range(2):
        model = SeamlessM4Tv2Model.from_pretrained(checkpoint[0])
        name_parameters(model)
        slots = model.engine(False).slots(1, 1, prefills=True)
        cells = [EncodeAudio(model), EncodeText(model), slots.step, slots.prefill(48, True)]
        cells.append(WriteContext(model.language_model, slots.context))
        found.append([graph_key(cell, ()) for cell in cells])
    assert found[0] == found[1] and len(set(found[0])) == 5


# Commands


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two clips, as files."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, clip in zip("ab", samples(9000, 5000)):
        soundfile.write(folder / f"{name}.wav", clip, 16_000, subtype="FLOAT")
    return folder


FEW = ["--max-new-tokens", "8", "--no-repeat-ngram-size", "1"]


@pytest.fixture
def command(checkpoint, ours, processor, monkeypatch):
    """A command with the model that is loaded already."""
    monkeypatch.setattr(pipelines.load, "model_class", lambda config: type(ours))
    monkeypatch.setattr(type(ours), "from_pretrained", lambda *arguments, **more: ours)
    return lambda *words: cli.main([*map(str, words), "--model", str(checkpoint[0]), *FEW])


def asked(theirs, processor, tgt_lang: str, **inputs) -> str:
    return said(theirs, processor, tgt_lang, processor(**inputs), max_new_tokens=8, no_repeat_ngram_size=1)


def test_translate(command, theirs, processor, recordings, capsys, monkeypatch):
    heard = [asked(theirs, processor, "deu", audio=recordings / f"{name}.wav") for name in "ab"]
    assert command("translate", recordings / "a.wav", "--to", "deu") == 0
    assert capsys.readouterr().out == f"{heard[0]}\n"
    assert command("translate", recordings / "*.wav", "--to", "deu") == 0
    a, b = (recordings / f"{name}.wav" for name in "ab")
    assert capsys.readouterr().out == f"{a}: {heard[0]}\n{b}: {heard[1]}\n"
    assert command("translate", a, b, "--to", "deu", "--stream") == 0
    assert capsys.readouterr().out == f"{a}: {heard[0]}\n{b}: {heard[1]}\n"
    assert command("translate", a, "--to", "deu", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["audio"] == str(a) and answer["translation_text"] == heard[0] and len(answer["chunks"]) == 1
    read = asked(theirs, processor, "fra", text="abc de", src_lang="deu")
    for more in ([], ["--stream"]):
        assert command("translate", "--text", "abc de", "--from", "deu", "--to", "fra", *more) == 0
        assert capsys.readouterr().out == f"{read}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc de\n\nhello\n"))
    assert command("translate", "--text", "-", "--to", "fra") == 0
    lines = [asked(theirs, processor, "fra", text=text) for text in ("abc de", "hello")]
    assert capsys.readouterr().out == "".join(f"{line}\n" for line in lines)


def test_transcribe(command, theirs, processor, recordings, capsys):
    heard = asked(theirs, processor, "fra", audio=recordings / "a.wav")
    assert command("transcribe", recordings / "a.wav", "--language", "fra") == 0
    assert capsys.readouterr().out == f"{heard}\n"
    assert command("transcribe", recordings / "a.wav", "--language", "fra", "--format", "srt") == 0
    assert capsys.readouterr().out.splitlines()[1] == "00:00:00,000 --> 00:00:00,562"


@pytest.mark.parametrize(
    "words, status, message",
    [
        (["translate", "--to", "deu"], 2, "neither of clips and --text were given"),
        (["translate", "a.wav", "--text", "a", "--to", "deu"], 2, "both of clips and --text were given"),
        (["translate", "Good morning", "--to", "deu"], 2, "give a text as --text 'Good morning'"),
        (["translate", "--text", " ", "--to", "deu"], 2, "there is no text to translate"),
        (
            ["translate", "--text", "a", "--to", "german"],
            2,
            "--to='german' is no language of this tokenizer: known are",
        ),
        (["translate", "--text", "a", "--to", "deu", "--from", "x"], 2, "--from='x' is no language"),
        (["translate", __file__, "--to", "deu", "--from", "eng"], 2, "--from eng is for --text"),
        (["translate", __file__, "--to", "deu"], 1, "error: "),
        (["transcribe", __file__], 1, "error: "),
        (["transcribe", __file__, "--task", "translate"], 2, "take a Whisper model"),
        (["ask", __file__, "What?"], 2, "transcribes and translates, and answers no questions"),
    ],
)
def test_what_the_commands_refuse(command, capsys, words, status, message):
    assert command(*words) == status
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_language_is_needed_to_transcribe(command, recordings, capsys):
    assert command("transcribe", recordings / "a.wav") == 1
    assert "--language is missing: known are deu, eng, fra" in capsys.readouterr().err


def test_warm_up(pipes):
    _warm_up(pipes["automatic-speech-recognition"], [2], [1], [64])
