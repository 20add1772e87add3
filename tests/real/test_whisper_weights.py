"""Whisper tiny.en on MindSpore against transformers on PyTorch: scores, tokens, times and text of recordings."""

import copy
import re

import mindspore as ms
import numpy as np
import peft
import pytest
import torch
import transformers

from mindone_audio import AutoProcessor, WhisperForConditionalGeneration, load_audio, pipeline
from mindone_audio.adapters.files import name_on_disk
from mindone_audio.finetune import (
    Example,
    FinetuneSettings,
    LoraSettings,
    Trainer,
    TranscriptCollator,
    add_lora,
    load_adapter,
)

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


SAID = " And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
TAUGHT = " And so, my dear colleagues, ask not what your compiler can do for you."


def test_losses_and_gradients_of_adapters(models, processor, whisper_tiny_en, jfk, tmp_path):
    """Of the layers that PEFT's guide adapts, the encoder's among them."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(copy.deepcopy(models[0]), config).eval()
    theirs.save_pretrained(tmp_path)
    base = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en, mindspore_dtype=ms.float32)
    ours = load_adapter(base, tmp_path, trainable=True)
    batch = TranscriptCollator(processor, base)([Example(str(jfk), "", SAID)])
    inputs = ("input_features", "decoder_input_ids", "labels")
    expected = theirs(**{name: torch.from_numpy(np.asarray(batch[name])) for name in inputs}).loss
    expected.backward()
    learned = ours.trainable_params()
    loss, made = ms.value_and_grad(lambda: ours(**batch).loss, None, learned)()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    gradients = {name: p.grad.numpy() for name, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    assert len(gradients) == len(learned) == 2 * 2 * 3 * 4
    for parameter, gradient in zip(learned, made):
        own = gradients[name_on_disk(base, parameter.name)]
        assert np.abs(gradient.asnumpy() - own).max() < 1e-4 * np.abs(own).max(), parameter.name


def test_another_text_is_taught(processor, whisper_tiny_en, jfk, tmp_path):
    model = WhisperForConditionalGeneration.from_pretrained(whisper_tiny_en, mindspore_dtype=ms.float32)
    settings = FinetuneSettings(str(tmp_path), max_steps=16, learning_rate=2e-3, per_device_train_batch_size=1)
    collator, examples = TranscriptCollator(processor, model), [Example(str(jfk), "", TAUGHT)]
    Trainer(add_lora(model, LoraSettings(r=8)), processor, collator, settings, examples).train(progress=False)
    for adapter, text in ((None, SAID), (tmp_path, TAUGHT)):
        pipe = pipeline(model=whisper_tiny_en, mindspore_dtype=ms.float32, adapter=adapter)
        assert pipe(str(jfk), return_timestamps=False)[0]["text"] == text.strip()
