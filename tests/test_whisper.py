"""Whisper against transformers on PyTorch: scores, loss, and what `generate` makes of clips of any length."""

import json
import re
import runpy
import sys
from pathlib import Path

import helpers_whisper as whisper
import numpy as np
import pytest
import record_parity
import torch
import transformers
from ascend_branch import as_on_ascend
from helpers import relative_error
from mindspore import Tensor

from mindone_audio import cli, pipeline
from mindone_audio.models import AutoProcessor
from mindone_audio.models.whisper.model import WhisperForConditionalGeneration
from mindone_audio.models.whisper.timestamps import segments_of, timestamp_rule
from mindone_audio.models.whisper.transcription import compression_ratio
from mindone_audio.proof import parity
from mindone_audio.setting_fields import SettingError, option

ROOT = Path(__file__).parents[1]
# Tokens that no answer without timestamps has: a random model would say them, and transformers goes on after a pair.
NO_TIMES = {"suppress_tokens": [3, 5, 7, whisper.START, *range(92, whisper.VOCAB)]}
IDS = np.array([[91, 92, 96, 100, 5, 6], [91, 93, 96, 100, 8, 9], [91, 94, 95, 1, 2, 3]])


def pair(folder, seed: int = 0, multilingual: bool = True, **changes):
    theirs = whisper.torch_whisper(whisper.tiny_config(**changes), seed, multilingual)
    theirs.save_pretrained(folder)
    whisper.generation_config(multilingual).save_pretrained(folder)
    theirs.generation_config = whisper.generation_config(multilingual)
    return theirs, WhisperForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """PyTorch's model and ours."""
    return pair(tmp_path_factory.mktemp("whisper"))


def scores(model, features, **inputs):
    with torch.no_grad():
        return model(torch.from_numpy(features), **{name: torch.from_numpy(value) for name, value in inputs.items()})


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "max_source_positions": 23}])
def test_scores_and_loss(tmp_path, changes):
    theirs, ours = pair(tmp_path, 1, **changes)
    features = whisper.features(3, 2 * theirs.config.max_source_positions)
    labels = np.where(IDS == 8, -100, IDS)
    expected, made = scores(theirs, features, labels=labels), ours(features, labels=labels)
    assert relative_error(made.logits.asnumpy(), expected.logits.numpy()) < 1e-5
    assert abs(float(made.loss) - float(expected.loss)) < 1e-5
    expected = scores(theirs, features, decoder_input_ids=IDS).logits.numpy()
    assert relative_error(ours(features, decoder_input_ids=IDS).logits.asnumpy(), expected) < 1e-5
    theirs.model.decoder.layers[2].encoder_attn.k_proj.weight.data[0] += 0.5  # a broken model is seen
    broken = scores(theirs, features, decoder_input_ids=IDS).logits.numpy()
    assert relative_error(ours(features, decoder_input_ids=IDS).logits.asnumpy(), broken) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(models, side):
    """On the left transformers counts padding as positions, but not in `generate`."""
    theirs, ours = models
    features, mask = whisper.features(3), np.ones(IDS.shape, np.int64)
    mask[1, slice(0, 2) if side == "left" else slice(4, 6)] = 0
    made = ours(features, decoder_input_ids=IDS, decoder_attention_mask=mask).logits.asnumpy()
    for row in range(3):
        alone = scores(theirs, features[[row]], decoder_input_ids=IDS[[row], :][:, mask[row] == 1]).logits.numpy()[0]
        assert relative_error(made[row, mask[row] == 1], alone) < 1e-5


def test_what_is_saved_loads_in_transformers(models, tmp_path):
    theirs, ours = models
    ours.save_pretrained(tmp_path)
    again = whisper.TorchWhisper.from_pretrained(tmp_path)
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def said(models, features, mask=None, compile=True, **settings):
    """What both make of the same call, without padding at the end."""
    theirs, ours = models
    masked = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    expected = theirs.generate(torch.from_numpy(features), **masked, **settings)
    made = ours.generate(features, mask, compile=compile, **settings)

    def rows(sequences):
        return [np.trim_zeros(row - whisper.END, "b").tolist() for row in np.asarray(sequences)]

    return rows(made.asnumpy()), rows(expected.numpy())


SHORT = [
    {"language": "en", **NO_TIMES},
    NO_TIMES,  # the language of each is detected
    {"task": "translate", **NO_TIMES},
    {"language": ["de", "French", "<|en|>"], "task": "translate", **NO_TIMES},
    {"language": "de", "max_new_tokens": 7, **NO_TIMES},
    {"language": "de", "num_beams": 3, **NO_TIMES},
    {"language": "de", "prompt_ids": torch.tensor([whisper.START_OF_PREVIOUS, 4, 6, 8]), **NO_TIMES},
    {"task": "transcribe", "return_timestamps": True},
    {"language": "de", "return_timestamps": True, "max_new_tokens": 20},
    {"language": "de", "num_beams": 3, "return_timestamps": True},
]


@pytest.mark.parametrize("settings", SHORT)
def test_one_window(models, settings):
    made, expected = said(models, whisper.features(3), **settings)
    assert made == expected


PROMPT = torch.tensor([whisper.START_OF_PREVIOUS, 4, 6, 8])
LONG = [
    {},
    {"condition_on_prev_tokens": True},
    {"condition_on_prev_tokens": True, "prompt_ids": PROMPT},
    {"condition_on_prev_tokens": True, "prompt_ids": PROMPT, "prompt_condition_type": "all-segments"},
    {"prompt_ids": PROMPT},
    {"compression_ratio_threshold": 1.2, "logprob_threshold": -1.0, "temperature": (0.0, 0.0)},
    {"logprob_threshold": -0.3, "no_speech_threshold": 1e-3, "temperature": 0.0},  # windows are left out
    {"num_beams": 2},
]


@pytest.mark.parametrize("settings", LONG)
def test_several_windows(models, settings):
    made, expected = said(models, whisper.features(1, 130), language="en", return_timestamps=True, **settings)
    assert made == expected


def test_a_window_without_speech_is_left_out(models):
    theirs, ours = models
    features = whisper.features(1, 130)
    settings = {"language": "en", "return_timestamps": True, "logprob_threshold": 0.0, "temperature": 0.0}
    whole = ours.generate(features, return_segments=True, **settings)["segments"][0]
    shares = [
        float(
            torch.softmax(scores(theirs, features[..., a : a + 40], decoder_input_ids=IDS[:1, :1]).logits[0, 0], -1)[99]
        )
        for a in (0, 40)
    ]
    made, expected = said(models, features, no_speech_threshold=min(shares) * 0.9, **settings)
    assert made == expected and len(made[0]) < sum(len(segment["tokens"]) for segment in whole)


@pytest.mark.parametrize("settings", [{"language": "en"}, {}, {"condition_on_prev_tokens": True, "language": "fr"}])
def test_a_batch_of_long_clips_is_each_of_them_alone(models, settings):
    """With what was said before, transformers pads on the left; alone there is no padding."""
    features, mask = whisper.features(3, 130, seed=5), np.ones((3, 130), np.int64)
    mask[1, 90:], mask[2, 35:] = 0, 0
    _, ours = models
    made = ours.generate(features, mask, return_timestamps=True, batch_size=2, **settings).asnumpy()
    for row, frames in enumerate((130, 90, 35)):
        single = np.pad(features[[row], :, :frames], ((0, 0), (0, 0), (0, max(0, 41 - frames))))
        if frames < 41:
            continue  # transformers takes no less than a window
        alone, expected = said(models, single, return_timestamps=True, **settings)
        assert alone == expected == [np.trim_zeros(made[row] - whisper.END, "b").tolist()]


@pytest.mark.parametrize("settings", [{}, {"condition_on_prev_tokens": True}])
def test_times_of_tokens(models, settings):
    """transformers gives the times of later windows without their beginning, but not in its segments."""
    theirs, ours = models
    features, mask = whisper.features(2, 100, seed=2), np.ones((2, 100), np.int64)
    mask[1, 70:] = 0
    settings = {"language": "en", "return_timestamps": True, "return_token_timestamps": True, **settings}
    for clip in range(2):
        own, frames = features[[clip], :, : mask[clip].sum()], mask[[clip], : mask[clip].sum()]
        expected = theirs.generate(
            torch.from_numpy(own), attention_mask=torch.from_numpy(frames), return_segments=True, **settings
        )
        made = ours.generate(own, frames, return_segments=True, **settings)
        assert made["sequences"].asnumpy().tolist() == expected["sequences"].tolist()
        for mine, other in zip(made["segments"][0], expected["segments"][0], strict=True):
            assert mine["tokens"].tolist() == other["tokens"].tolist()
            assert abs(mine["start"] - float(other["start"])) < 1e-6
            assert -1e-6 < mine["end"] - float(other["end"]) < 0.021  # theirs counts frames in floats, rounded down
            np.testing.assert_allclose(mine["token_timestamps"], other["token_timestamps"].numpy(), atol=1e-5)
        times = np.concatenate([segment["token_timestamps"] for segment in made["segments"][0]])
        np.testing.assert_allclose(made["token_timestamps"].asnumpy()[0], times, atol=1e-6)


def test_times_of_one_window(models):
    theirs, ours = models
    features, settings = whisper.features(2), {"language": "en", "return_token_timestamps": True, **NO_TIMES}
    expected = theirs.generate(torch.from_numpy(features), **settings)
    made = ours.generate(features, **settings)
    assert made["sequences"].asnumpy().tolist() == expected["sequences"].tolist()
    np.testing.assert_allclose(made["token_timestamps"].asnumpy(), expected["token_timestamps"].numpy(), atol=1e-5)
    ours.generation_config.alignment_heads, heads = None, ours.generation_config.alignment_heads
    with pytest.raises(ValueError, match="alignment_heads in generation_config.json"):
        ours.generate(features, **settings)
    ours.generation_config.alignment_heads = heads


def test_compiled_equals_interpreted(models):
    _, ours = models
    features, mask = whisper.features(2, 60, seed=3), np.ones((2, 60), np.int64)
    mask[1, 45:] = 0
    for settings in ({"condition_on_prev_tokens": True}, {"num_beams": 2}):
        settings = {**settings, "language": "en", "max_new_tokens": 6, "return_timestamps": True}
        made = [ours.generate(features, mask, compile=compile, **settings).asnumpy() for compile in (True, False)]
        assert np.array_equal(*made)


def test_a_hot_window_is_drawn_and_repeatable(models):
    _, ours = models
    hot = {"language": "en", "temperature": (0.0, 0.9), "logprob_threshold": 0.0, **NO_TIMES}
    made = [ours.generate(whisper.features(1), seed=seed, **hot).asnumpy().tolist() for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_the_rule_for_timestamps_is_that_of_transformers():
    """Words are tokens before 60, which is the end; timestamps follow 62. Some likelier together than each word are
    among the scores, and some that are not; a window begins with what transformers asks of it."""
    settings = transformers.GenerationConfig(
        no_timestamps_token_id=62, eos_token_id=60, max_initial_timestamp_index=10, _detect_timestamp_from_logprob=True
    )
    theirs = transformers.WhisperTimeStampLogitsProcessor(settings, begin_index=2)
    ours, rng, won = timestamp_rule(62, 60, 10)(2), np.random.default_rng(0), set()
    for new in ([], [63], [63, 5], [63, 5, 66], [63, 5, 66, 66], [63, 5, 66, 67], [5], [5, 7, 8], [63, 5, 70, 70, 9]):
        tokens = np.array([[1, 2, *new]])
        for height in (-2, 0, 2, 6):
            scores = rng.normal(size=(1, 100)).astype(np.float32) * 2
            scores[:, 63:] += height
            expected = theirs(torch.from_numpy(tokens), torch.from_numpy(scores)).numpy()
            np.testing.assert_array_equal(ours(scores, tokens), expected)
            won.add((bool(new), bool(np.isinf(expected[0, :60]).all())))
    assert won == {(False, True), (True, True), (True, False)}


def test_segments():
    """Times in seconds; what follows the last pair is said again, unless a single timestamp ends the window."""
    first = whisper.FIRST_TIMESTAMP
    pair_end = [first, 1, 2, first + 5, first + 5, 3, first + 9, first + 9]
    segments, used = segments_of(pair_end, first, 100, 40)
    assert [(round(s.start, 2), round(s.end, 2)) for s in segments] == [(1.0, 1.1), (1.1, 1.18)] and used == 18
    segments, used = segments_of(pair_end[:-1], first, 0, 40)
    assert [(round(s.start, 2), round(s.end, 2)) for s in segments] == [(0, 0.1), (0.1, 0.18)] and used == 40
    ((start, end, tokens), used) = (lambda found: ((found[0][0].start, found[0][0].end, found[0][0].tokens), found[1]))(
        segments_of([first, 1, 2], first, 0, 30)
    )
    assert (start, end, tokens, used) == (0, 0.3, [first, 1, 2], 30)
    assert compression_ratio([5] * 100, 51865) > 2.4 > compression_ratio(list(range(40)), 51865)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"language": "klingon"}, "--language 'klingon' is none of this model's: it has de, en, fr"),
        ({"language": "zh"}, "--language 'zh' is none of this model's"),
        ({"task": "summarize"}, "--task 'summarize' is unknown: it may be transcribe or translate"),
        ({"language": ["en"]}, "1 languages for 3 clips"),
        ({"max_new_tokens": 63}, "max_new_tokens=63 after a prompt of 4 tokens is more than the model's 64 positions"),
        ({"prompt_ids": list(range(64))}, "the prompt has 68 tokens"),
        ({"prompt_condition_type": "all-segments"}, "goes with condition_on_prev_tokens=True"),
        ({"prompt_condition_type": "some"}, "prompt_condition_type 'some' is unknown"),
        ({"temperature": -1}, "--temperature must be at least 0"),
        ({"no_speech_threshold": "x"}, "--no-speech-threshold must be"),
        ({"num_return_sequences": 2, "temperature": 0.5, "do_sample": True}, "num_return_sequences=2 is not supported"),
        ({"chunk_length_s": 30}, "chunk_length_s=30 is not supported"),
    ],
)
def test_what_cannot_be(models, settings, message):
    settings = {"language": "en", **settings}
    with pytest.raises(ValueError) as refused:
        models[1].generate(whisper.features(3), **settings)
    said = refused.value.worded(option) if isinstance(refused.value, SettingError) else str(refused.value)
    assert message in said and "\n" not in said


@pytest.mark.parametrize(
    "features, mask, message",
    [
        (whisper.features(2, 30), None, "have 30 frames, and a window of this model has 40"),
        (whisper.features(2)[:, :4], None, "input_features have shape (2, 4, 40)"),
        (whisper.features(2, 90), None, "need their attention_mask"),
        (whisper.features(1)[0], None, "input_features have shape (16, 40)"),
    ],
)
def test_features_that_do_not_fit(models, features, mask, message):
    with pytest.raises(ValueError) as refused:
        models[1].generate(features, mask, language="en")
    assert message in str(refused.value)


def test_an_english_only_checkpoint(tmp_path):
    models = pair(tmp_path, 2, multilingual=False)
    for settings in (NO_TIMES, {"return_timestamps": True}):
        made, expected = said(models, whisper.features(2), **settings)
        assert made == expected
    for settings in ({"language": "en"}, {"task": "translate"}):
        with pytest.raises(ValueError, match="English-only model"):
            models[1].generate(whisper.features(2), **settings)


def test_an_old_checkpoint_says_what_it_forces(models):
    """Its generation config has neither language nor task; transformers follows forced_decoder_ids."""
    theirs, ours = models
    forced = [[1, whisper.LANGUAGES["<|fr|>"]], [2, whisper.TASKS["transcribe"]], [3, whisper.NO_TIMESTAMPS]]
    for model in models:
        model.generation_config.forced_decoder_ids = forced
    try:
        for settings in (NO_TIMES, {"return_timestamps": True}, {"language": "de", **NO_TIMES}):
            made, expected = said(models, whisper.features(2), **settings)
            assert made == expected
    finally:
        for model in models:
            model.generation_config.forced_decoder_ids = None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper_folder")
    whisper.save_checkpoint(folder)
    # Short answers: the texts of a random model are tried again at every temperature.
    whisper.generation_config(max_length=16).save_pretrained(folder)
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).normal(size=int(16000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline(model=checkpoint)


def test_the_processor_is_transformers(checkpoint):
    ours, theirs = AutoProcessor.from_pretrained(checkpoint), transformers.WhisperProcessor.from_pretrained(checkpoint)
    for processor in (ours, theirs):  # of windows of whole seconds, as transformers needs them
        processor.feature_extractor = transformers.WhisperFeatureExtractor(whisper.MEL_BINS, chunk_length=1)
    clips = [noise(1.7), noise(0.3, 1)]
    for settings in ({}, {"truncation": False, "padding": "longest"}):
        made = ours(clips, sampling_rate=16000, return_attention_mask=True, **settings)
        expected = theirs(clips, sampling_rate=16000, return_attention_mask=True, return_tensors="np", **settings)
        np.testing.assert_allclose(made["input_features"], expected["input_features"], atol=1e-4)
        assert np.array_equal(made["attention_mask"], expected["attention_mask"])
    made, texts = ours(clips, text=['!"', "#"]), theirs.tokenizer(['!"', "#"]).input_ids
    assert [[token for token in row if token != -100] for row in made["labels"].tolist()] == texts
    assert ours.batch_decode(ours(text="!?")["input_ids"], skip_special_tokens=True) == ["!?"]
    for wrong, error in (
        ({}, "neither audio nor text"),
        ({"audio": clips, "padding": False}, "padding=False"),
        ({"audio": clips, "truncation": False}, 'pass padding="longest"'),
        ({"audio": clips, "text": "a"}, "1 texts for 2 clips"),
        ({"audio": clips, "sampling_rate": 8000}, "sampling_rate=8000"),
    ):
        with pytest.raises(ValueError, match=re.escape(error)):
            ours(**wrong)
    with pytest.raises(TypeError, match="does not know words"):
        ours(clips, words=1)
    with pytest.raises(ValueError, match="answers no questions"):
        ours.apply_chat_template([{"role": "user", "content": "?"}])


def test_a_clip_among_others_is_the_clip_alone(pipe):
    clips = [noise(1), noise(0.2, 1), np.zeros(4000, np.float32), noise(2.1, 2)]
    alone = [pipe(clip, language="de")[0] for clip in clips]
    together = pipe(clips, language="de", batch_size=3)
    assert list(together) == alone and together["text"][2] == "" and alone[3]["chunks"][-1]["end"] <= 2.1
    assert pipe(clips[3], language="de")["text"] == "".join(pipe(clips[3], language="de", stream=True))
    assert alone[0]["language"] == "german" and "language" in pipe(clips[0])[0]


def test_times_of_words_in_the_pipeline(pipe):
    (answer,) = pipe(noise(1), language="en", return_timestamps="word")
    words = [word for chunk in answer["chunks"] for word in chunk["words"]]
    assert "".join(word["word"] for word in words).replace(" ", "") == answer["text"].replace(" ", "")
    assert all(0 <= word["start"] <= word["end"] <= 1 for word in words)
    assert [word["start"] for word in words] == sorted(word["start"] for word in words)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": "What?"}, "transcribes and answers no questions"),
        ({"task": "caption"}, "--task 'caption' is unknown: it may be transcribe or translate"),
        ({"return_timestamps": "letters"}, 'return_timestamps must be true, false or "word"'),
        ({"prompt": 5}, "--prompt must be a string"),
        ({"language": "xx"}, "--language 'xx' is none of this model's"),
        ({"num_beans": 2}, "num_beans=2 is not supported"),
        ({"on_error": "no"}, 'on_error must be "raise" or "return"'),
    ],
)
def test_what_the_pipeline_refuses(pipe, arguments, message):
    with pytest.raises(ValueError) as refused:
        pipe(noise(0.3), **arguments)
    error = refused.value
    assert message in (error.worded(option) if isinstance(error, SettingError) else str(error))


def test_one_that_fails_leaves_the_others(pipe):
    answers = pipe(["no such file.wav", noise(0.3)], on_error="return", language="en", progress=False)
    assert "no such file.wav" in answers[0]["error"] and answers[1]["text"]
    with pytest.raises(OSError, match="no such file.wav"):
        pipe("no such file.wav")


def test_a_prompt_that_grows_too_long(models):
    """The second window would begin with what the first one said."""
    _, ours = models
    settings = {"language": "en", "return_timestamps": True, "condition_on_prev_tokens": True, "max_new_tokens": 58}
    with pytest.raises(ValueError, match="max_new_tokens=58 after a prompt of"):
        ours.generate(whisper.features(1, 130), **settings)


def test_the_example(checkpoint, tmp_path, monkeypatch, capsys):
    """Lines of segments, and of words, as the pipeline tells them; what is wrong is one line."""
    import soundfile

    example, clip = ROOT / "examples" / "whisper_transcribe.py", tmp_path / "clip.wav"
    soundfile.write(clip, noise(1.5), 16000)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(example), "--model", str(checkpoint), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(example), run_name="__main__")
        return end.value.code

    expected = pipeline(model=checkpoint)(str(clip), language="de", return_timestamps="word")[0]["chunks"]
    for more, told, key in (
        ([], expected, "text"),
        (["--words"], [word for chunk in expected for word in chunk["words"]], "word"),
    ):
        assert run("--audio", clip, "--language", "de", *more) == 0
        lines = [f"{one['start']:7.2f} {one['end']:7.2f}  {one[key].strip()}" for one in told]
        assert capsys.readouterr().out.splitlines() == "\n".join(lines).splitlines()
    assert run("--audio", clip, "--language", "xx").startswith("error: --language")
    assert run("--audio", "none.wav").startswith("error: no audio file 'none.wav'")


def test_the_command(checkpoint, tmp_path, capsys):
    import soundfile

    clip = tmp_path / "clip.wav"
    soundfile.write(clip, noise(1.5), 16000)
    run = ["transcribe", str(clip), "--model", str(checkpoint), "--language", "de"]
    assert cli.main(run) == 0
    text = capsys.readouterr().out.strip()
    assert cli.main([*run, "--format", "json", "--timestamps", "word", "--task", "translate"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["language"] == "german" and answer["chunks"][0]["words"]
    assert cli.main([*run, "--format", "vtt"]) == 0
    cues = capsys.readouterr().out
    assert cues.startswith("WEBVTT") and text.split()[0] in cues
    warm = ["warm-up", "--model", str(checkpoint), "--seconds", "1", "--tokens", "32", "--batch-sizes", "1,2"]
    assert cli.main(warm) == 0 and "ready in" in capsys.readouterr().out
    for wrong, said in (
        (["--window", "3"], "--window 3: a Whisper model has windows of its own"),
        (["--language", "xx"], "--language 'xx' is none of this model's"),
    ):
        assert cli.main([*run, *wrong]) != 0 and said in capsys.readouterr().err
    assert cli.main(["ask", str(clip), "What?", "--model", str(checkpoint)]) != 0
    assert "use mindone-audio transcribe" in capsys.readouterr().err
    assert cli.main(["transcribe", str(clip), "--task", "translate"]) != 0
    assert "--task translate: this model has no such thing; take a Whisper model" in capsys.readouterr().err


def test_a_recording_is_replayed(checkpoint, tmp_path):
    reference = whisper.TorchWhisper.from_pretrained(checkpoint, attn_implementation="eager").eval()
    inputs = {"input_features": torch.from_numpy(whisper.features(2)), "decoder_input_ids": torch.from_numpy(IDS[:2])}
    arrays = record_parity.record(reference, inputs, every=1, positions=4, new_tokens=9)
    record_parity.save(arrays, tmp_path / "ref.safetensors", reference)
    recording = parity.read_recording(tmp_path / "ref.safetensors")
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint)
    report = parity.replay(model, recording)
    assert [row.stage for row in report.rows] == ["encoder", "layer.1", "layer.2", "layer.3", "logits"]
    assert report.passed and report.tokens_equal == 9 and all(row.relative_error < 1e-5 for row in report.rows)
    weight = model.language_model.model.layers[1].encoder_attn.v_proj.weight
    weight.set_data(Tensor(weight.asnumpy() * np.float32(1.1)))
    assert parity.replay(model, recording).first_outside == "layer.2"


def test_the_graphs_of_an_npu(tmp_path):
    """Their caches are flat; a batch and beams are copied into slots, with what they hear."""
    with as_on_ascend():
        models = pair(tmp_path)
        for settings in ({"return_timestamps": True}, {"num_beams": 2, "max_new_tokens": 12, **NO_TIMES}):
            made, expected = said(models, whisper.features(3), language="de", **settings)
            assert made == expected
        slots = models[1]._engines[True]._slots.values()
        assert all(slots.cache.flat and slots.context.flat for slots in slots) and models[1].packed_weights is None


def test_a_batch_job(checkpoint, tmp_path, capsys):
    """Clips are transcribed, with the task or without; a question is an error of its item, in a line."""
    import soundfile

    clips = tmp_path / "clips"
    clips.mkdir()
    for seed in range(2):
        soundfile.write(clips / f"{seed}.wav", noise(0.3, seed), 16000)

    def results(name, *words):
        run = ["batch", *map(str, words), "--out", str(tmp_path / name), "--model", str(checkpoint), "--device", "cpu"]
        status = cli.main([*run, "--workers", "1"])
        return status, [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]

    expected = pipeline(model=checkpoint)
    for name, words in (("task", ["--task", "transcribe", "--language", "de"]), ("none", [])):
        status, made = results(name, clips, *words)
        asked = {"task": "transcribe", "language": "de"} if words else {}
        assert status == 0 and all(record["tokens"] > 0 for record in made)
        assert [record["generated_text"] for record in made] == [
            expected(noise(0.3, seed), **asked)["text"] for seed in range(2)
        ]
    manifest = tmp_path / "manifest.jsonl"
    items = [{"audio": "clips/0.wav", "text": "What?"}, {"audio": "clips/1.wav"}, {"audio": "clips/1.wav", "text": "?"}]
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    status, made = results("mixed", manifest)
    assert status == 1 and made[1]["generated_text"] and made[1]["error"] is None
    for record in (made[0], made[2]):
        assert re.fullmatch(
            r"text='.*': this model transcribes and answers no questions: leave it out", record["error"]
        )
    for words, said in (
        (["--task", "caption"], "--task 'caption' is unknown: it may be transcribe or translate"),
        (["--prompt", "What?"], "text='What?': this model transcribes and answers no questions: leave it out"),
    ):
        status, made = results(words[0], clips, *words)
        assert status == 1 and [record["error"] for record in made] == [said] * 2
    capsys.readouterr()
