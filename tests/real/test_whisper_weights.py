"""Whisper tiny.en on MindSpore against transformers on PyTorch: scores, tokens, times and text of recordings."""

import re

import numpy as np
import pytest
import torch
import transformers

from mindone_audio import AutoProcessor, WhisperForConditionalGeneration, load_audio, pipeline

END = 50256
EVERY = 10  # of the recordings one is compared, which takes PyTorch seconds


@pytest.fixture(scope="module")
def models(whisper_tiny_en):
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        whisper_tiny_en, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return theirs, WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en)


@pytest.fixture(scope="module")
def processor(whisper_tiny_en):
    return AutoProcessor.from_pretrained(whisper_tiny_en)


def said(sequences) -> list[int]:
    return (np.trim_zeros(np.asarray(sequences)[0] - END, "b") + END).tolist()


def check(models, features: np.ndarray) -> None:
    """Text with and without times, the times of tokens, and the scores of what was said."""
    theirs, ours = models
    for settings in ({"return_timestamps": False}, {"return_timestamps": True, "return_token_timestamps": True}):
        expected, made = theirs.generate(torch.from_numpy(features), **settings), ours.generate(features, **settings)
        if settings["return_timestamps"]:
            times = [found["token_timestamps"] for found in (made, expected)]
            made, expected = made["sequences"], expected["sequences"]
            tokens = said(made.asnumpy())
            np.testing.assert_allclose(times[0].asnumpy()[0, : len(tokens)], times[1][0, : len(tokens)], atol=0.021)
        assert said(made.asnumpy()) == said(expected.numpy())
    ids = np.array([[50257, *tokens[:60]]])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(features), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    made = ours(features, decoder_input_ids=ids).logits.asnumpy()
    assert np.abs(made - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_recording_that_is_shipped(models, processor, jfk):
    check(models, processor(str(jfk))["input_features"])


def test_recordings_of_people(models, processor, real_speech):
    for entry in real_speech[::EVERY]:
        check(models, processor(str(entry["path"]))["input_features"])


def test_words_and_their_times(whisper_tiny_en, jfk):
    answer = pipeline(model=whisper_tiny_en)(str(jfk), return_timestamps="word")[0]
    assert "what you can do for your country." in answer["text"]
    words = [word for chunk in answer["chunks"] for word in chunk["words"]]
    assert [re.sub(r"\W", "", word["word"]).lower() for word in words] == re.findall(r"\w+", answer["text"].lower())
    assert all(0.3 < word["start"] <= word["end"] <= 11 for word in words)


def test_a_long_clip(models, processor, jfk, whisper_tiny_en):
    """Over two minutes: the windows are transformers', and in a batch each clip is what it is alone."""
    theirs, ours = models
    clip = np.concatenate([load_audio(str(jfk))] * 12)
    inputs = processor([clip, clip[: 45 * 16000]], truncation=False, padding="longest", return_attention_mask=True)
    settings = {"return_timestamps": True, "condition_on_prev_tokens": False}
    made = ours.generate(**inputs, **settings).asnumpy()
    alone = theirs.generate(torch.from_numpy(inputs["input_features"][:1]), **settings).numpy()
    assert said(made) == said(alone)
    assert said(made[1:]) == said(ours.generate(inputs["input_features"][1:, :, :4500], **settings).asnumpy())
    assert processor.decode(made[0], skip_special_tokens=True).count("country") >= 20
