"""Phi-4-multimodal: both layouts, the adapter that audio switches on, long sequences, the processor, bad input."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import helpers_phi4 as phi4
import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import batch, relative_error, to_torch
from helpers_bodies import wrong_parameters
from helpers_processor import tone
from mindspore import Tensor
from safetensors.numpy import load_file

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.finetune import LoraSettings, add_lora
from mindone_audio.generation.beam import BeamSearch
from mindone_audio.generation.sampling import log_softmax
from mindone_audio.generation.settings import GenerationSettings
from mindone_audio.inputs.audio import AudioError
from mindone_audio.models.phi4_multimodal.encoder import Phi4EncoderConfig
from mindone_audio.weights.hub import CheckpointError

EXAMPLE = Path(__file__).parent.parent / "examples" / "ask_about_clips.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same weights in both layouts, each with the adapter for speech; Microsoft's has the one for images too."""
    folder = tmp_path_factory.mktemp("phi4")
    model = phi4.torch_phi4(phi4.tiny_phi4_config())
    model.save_pretrained(folder / "transformers")
    adapters = {"speech": phi4.adapter(model), "vision": phi4.adapter(model, seed=2)}
    phi4.write_microsoft(folder / "microsoft", folder / "transformers", adapters)
    phi4.write_adapter(folder / "transformers", adapters["speech"])
    return {"transformers": folder / "transformers", "microsoft": folder / "microsoft"}


@pytest.fixture(scope="module")
def models(folders):
    return {layout: AutoModelForAudioTextToText.from_pretrained(folder) for layout, folder in folders.items()}


@pytest.fixture(scope="module")
def references(folders):
    """transformers' model without the adapter, and with it by PEFT."""
    load = transformers.Phi4MultimodalForCausalLM.from_pretrained
    bare, adapted = (load(folders["transformers"], attn_implementation="eager").eval() for _ in range(2))
    adapted.load_adapter(str(folders["transformers"] / "speech-lora"))
    return {"bare": bare, "adapted": adapted}


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return AutoProcessor.from_pretrained(phi4.write_processor(tmp_path_factory.mktemp("processor")))


def logits(reference, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return reference(**to_torch(inputs)).logits.numpy()


@pytest.mark.parametrize("layout", ["transformers", "microsoft"])
@pytest.mark.parametrize("case", ["one clip", "text only", "three clips"])
def test_the_adapter_is_on_for_audio_and_off_for_text(models, references, layout, case):
    """PEFT puts it on; what is not so would be far off."""
    inputs = phi4.phi4_cases()[case]()
    right, wrong = ("bare", "adapted") if case == "text only" else ("adapted", "bare")
    expected = logits(references[right], inputs)
    assert relative_error(models[layout](**inputs).logits.asnumpy(), expected) < 1e-4
    assert relative_error(logits(references[wrong], inputs), expected) > 0.1


def test_clips_of_unequal_lengths_are_what_each_is_alone(models):
    """transformers lets a clip attend to, and its convolutions hear, the padding behind it."""
    lengths = [117, 3, 61, 88]
    clips = phi4.clips(lengths, seed=8)
    prompts = [phi4.prompt(2, -frames, 3, seed=frames) for frames in lengths]
    together = models["transformers"](**batch(prompts), **clips).logits.asnumpy()
    for row, (tokens, frames) in enumerate(zip(prompts, lengths)):
        features = {"audio_input_features": clips["audio_input_features"][row : row + 1, :frames]}
        alone = models["transformers"](**batch([tokens]), **features).logits.asnumpy()
        assert relative_error(together[row, -len(tokens) :], alone[0]) < 1e-5


def test_every_parameter_of_the_encoder_is_proved(models):
    """The test of a long clip can fail: it sees a 2 % change of any one parameter, its mean and variance included."""
    model = models["transformers"]
    padded, lengths = model.clips({"audio_input_features": phi4.clips([117], seed=3)["audio_input_features"]})

    def run():
        return model.audio_tower(model.features_tensor(padded), Tensor(lengths)).asnumpy()

    unnoticed = wrong_parameters(model.audio_tower, run, run(), 5e-6)
    assert [name for name in unnoticed if not name.endswith("linear_k.bias")] == []


@pytest.mark.parametrize("frames", [3999, 4000, 4001, 9000])
def test_a_long_clip_is_encoded_in_windows(models, references, frames):
    """Each window of 40 s by itself; transformers fills up the last one with zeros, to which the others attend."""
    features = phi4.clips([frames], seed=frames)["audio_input_features"]
    model, encoder = models["transformers"], references["bare"].model.embed_tokens_extend.audio_embed.encoder
    padded, lengths = model.clips({"audio_input_features": features})
    ours = model.audio_tower(model.features_tensor(padded), Tensor(lengths)).asnumpy()[0, : (frames + 7) // 8]
    with torch.no_grad():
        hidden = encoder.embed(encoder.encoder_embedding(torch.from_numpy(features)), None)[0]
        expected = []
        for window in hidden.split(500, dim=1):
            mask = encoder.relative_attention_bias_layer(window)
            for layer in encoder.encoders:
                window = layer(window, mask)
            expected.append(window[0].numpy())
        theirs = encoder(torch.from_numpy(features), None)[0].numpy()
    expected = np.concatenate(expected)
    assert relative_error(ours, expected) < 5e-6
    whole = len(expected) // 500 * 500 if len(expected) > 500 else len(expected)
    assert relative_error(ours[:whole], theirs[:whole]) < 5e-6


def test_tokens_go_on_across_the_length_of_the_short_factors(models, references):
    """Rows of one batch cross it at different times, one never: each is what whole forward passes give."""
    cases = phi4.phi4_cases()
    one, text = cases["one clip"](), cases["text only"]()
    prompts = [one["input_ids"][0].tolist(), text["input_ids"][0].tolist(), phi4.prompt(5, seed=9)]
    features = {"audio_input_features": one["audio_input_features"]}
    settings = {"max_new_tokens": 62, "do_sample": False, "compile": False}
    made = models["transformers"].generate(**batch(prompts), **features, **settings).asnumpy()
    new = made[:, -62:].tolist()
    assert new[0] == phi4.greedy(references["adapted"], one, 62)["tokens"][0].tolist()
    for row in (1, 2):
        assert new[row] == phi4.greedy(references["bare"], batch([prompts[row]]), 62)["tokens"][0].tolist()


def test_beams_go_on_across_the_length_of_the_short_factors(models, references):
    """Against the same search over whole forward passes of PyTorch's model."""
    prompts = [phi4.prompt(60, seed=1), phi4.prompt(55, seed=2)]
    settings = GenerationSettings(max_new_tokens=12, num_beams=3)
    made = (
        models["transformers"]
        .generate(**batch(prompts), max_new_tokens=12, num_beams=3, do_sample=False, compile=False)
        .asnumpy()[:, -12:]
    )
    for row, prompt in enumerate(prompts):
        search, beams = BeamSearch(1, settings), np.array([prompt] * 3)
        while not search.done:
            scores = logits(references["bare"], batch(beams.tolist()))[:, -1]
            rows, tokens = search.step(log_softmax(scores), lambda new: np.full(len(new), new.shape[1] >= 12))
            beams = np.concatenate([beams[rows], tokens[:, None]], 1)
        assert made[row].tolist() == search.result()[0][0].tolist()


def test_what_is_saved_is_loaded_by_transformers_and_peft(folders, models, references, tmp_path):
    for layout, model in models.items():
        model.save_pretrained(tmp_path / layout)
    files = [
        (folder / "model.safetensors", folder / "speech-lora" / "adapter_model.safetensors")
        for folder in (tmp_path / "transformers", tmp_path / "microsoft")
    ]
    for one, other in zip(*files):
        ours, theirs = load_file(one), load_file(other)
        assert set(ours) == set(theirs) and all((ours[name] == theirs[name]).all() for name in ours)
    theirs, info = transformers.Phi4MultimodalForCausalLM.from_pretrained(
        tmp_path / "microsoft", attn_implementation="eager", output_loading_info=True
    )
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all("image_embed" in name or "vision" in name for name in info["missing_keys"])
    theirs.eval().load_adapter(str(tmp_path / "microsoft" / "speech-lora"))
    inputs = phi4.phi4_cases()["one clip"]()
    assert relative_error(logits(theirs, inputs), logits(references["adapted"], inputs)) < 1e-6
    again = AutoModelForAudioTextToText.from_pretrained(tmp_path / "microsoft")
    assert relative_error(again(**inputs).logits.asnumpy(), models["microsoft"](**inputs).logits.asnumpy()) < 1e-6
    assert peft.LoraConfig.from_pretrained(tmp_path / "microsoft" / "speech-lora").r == phi4.RANK


def rope(**factors: list[float]) -> dict:
    return {"rope_scaling": {"type": "longrope", **factors}}


def reference_processor(processor) -> transformers.Phi4MultimodalProcessor:
    """transformers' processor with the same parts, and none for images, which it would insist on."""
    theirs = object.__new__(transformers.Phi4MultimodalProcessor)
    tokenizer = processor.tokenizer
    tokenizer.image_token, tokenizer.audio_token = "<|endoftext10|>", processor.audio_token
    theirs.audio_processor, theirs.tokenizer = processor.feature_extractor, tokenizer
    theirs.image_processor, theirs.image_token = SimpleNamespace(), tokenizer.image_token
    theirs._check_special_mm_tokens = lambda *arguments, **keywords: None
    return theirs


def test_the_processor_is_that_of_transformers(processor):
    clips = [tone(seconds, seed=i) for i, seconds in enumerate((0.5, 2.013, 7.3))]
    token = processor.audio_token
    texts = [f"<|user|>{token}What is it?<|end|><|assistant|>", f"Two: {token} and {token}."]
    ours = processor(texts, clips)
    theirs = reference_processor(processor)(texts, audio=clips, padding=True, sampling_rate=16_000)
    for name in ("input_ids", "attention_mask", "audio_embed_sizes", "audio_attention_mask"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    heard = ours["audio_attention_mask"]
    assert ours["audio_input_features"].dtype == np.float32 and not ours["audio_input_features"][~heard].any()
    assert np.abs(ours["audio_input_features"] - theirs["audio_input_features"].numpy())[heard].max() < 1e-4
    published = processor([text.replace(token, "<|audio_1|>") for text in texts], clips)
    np.testing.assert_array_equal(published["input_ids"], ours["input_ids"])


def test_the_prompt_of_a_chat(processor):
    content = [{"type": "audio", "audio": tone(0.5)}, {"type": "text", "text": "Transcribe the audio clip into text."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == f"<|user|>{processor.audio_token}Transcribe the audio clip into text.<|end|><|assistant|>"


def test_only_the_adapter_for_images_is_refused(folders, tmp_path):
    source = folders["transformers"]
    model = phi4.torch_phi4(phi4.tiny_phi4_config())
    phi4.write_microsoft(tmp_path / "one", source, {"vision": phi4.adapter(model)})
    with pytest.raises(CheckpointError, match="has the adapter for images alone.*take the whole checkpoint"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    phi4.write_adapter(tmp_path / "two", phi4.adapter(model), "vision")
    with pytest.raises(ValueError, match="has the adapter for images alone.*speech-lora"):
        AutoModelForAudioTextToText.from_pretrained(tmp_path / "two")


def test_a_checkpoint_without_an_adapter_says_so(folders, references, tmp_path, caplog):
    phi4.torch_phi4(phi4.tiny_phi4_config()).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    assert "has no speech adapter" in caplog.text
    inputs = phi4.phi4_cases()["one clip"]()
    assert relative_error(model(**inputs).logits.asnumpy(), logits(references["bare"], inputs)) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 3}},
            "short_factor has 1 n",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 4}},
            "long_factor has 4",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3}},
            "long_factor has 0 numbers, and there are 3",
        ),
        ({"sliding_window": 16}, "sliding_window 16 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)
@pytest.mark.parametrize("layout", ["transformers", "microsoft"])
def test_configs_that_do_not_fit(folders, tmp_path, layout, change, message):
    config = json.loads((folders[layout] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        AutoModelForAudioTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("field", ["chunk_size", "time_reduction", "kernel_size", "activation", "missing"])
def test_encoders_that_are_not_computed(folders, tmp_path, field):
    config = json.loads((folders["microsoft"] / "config.json").read_text())
    sizes = config["audio_processor"]["config"]
    changes = {"chunk_size": 18, "time_reduction": 4, "activation": "relu"}
    if field == "missing":
        del sizes["linear_units"]
        message = "is of model_type 'phi4mm' and lacks 'linear_units'"
    elif field == "kernel_size":
        sizes["depthwise_seperable_out_channel"] = 48
        message = "audio_config.depthwise_separable_out_channel 48 is not supported: only 24"
    else:
        sizes[field] = changes[field]
        message = f"audio_config.{field} {changes[field]!r} is not supported"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoModelForAudioTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_input_features": np.zeros((1, 117, 7), np.float32)}, r"shape \(1, 117, 7\), this model takes"),
        ({"audio_input_features": np.zeros((1, 0, 16), np.float32)}, r"shape \(1, 0, 16\), this model takes"),
        ({"audio_attention_mask": np.ones((1, 3))}, r"audio_attention_mask has shape \(1, 3\), not \(1, 117\)"),
        ({"audio_embed_sizes": np.array([9])}, "does not fit the clips, of .117. frames: .15."),
        ({"audio_input_features": None, "audio_embed_sizes": None}, "the 0 given clips need 0"),
        ({"image_pixel_values": np.zeros(1)}, "takes no image_pixel_values"),
    ],
)
def test_features_that_do_not_fit(models, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        models["microsoft"](**phi4.phi4_cases()["one clip"]() | change)


def test_clips_and_parts_that_cannot_be(processor):
    with pytest.raises(AudioError, match="has 399 samples, too few for one audio token: give at least 400"):
        processor(processor.audio_token, np.zeros(399, np.float32))
    with pytest.raises(ValueError, match="placeholder"):
        processor("<|audio_1|><|audio_2|>", tone(0.5))
    content = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(ValueError, match="image"):
        processor.apply_chat_template([{"role": "user", "content": content}])


def test_graphs_for_clips_are_few():
    sizes = Phi4EncoderConfig(80, 3000, 24, 40, 2, 3, 5, 4, 3, conv_channels=10)
    assert sizes.widths[-1] >= 3000 and len(sizes.widths) < 14
    assert [sizes.frames_to_encode(frames) for frames in (1, 65, 3900, 4000, 4001, 8001)] == [
        64,
        96,
        4000,
        4000,
        8000,
        12000,
    ]


def test_the_example(tmp_path, monkeypatch, capsys):
    phi4.write_checkpoint(tmp_path)
    clip = str(EXAMPLE.parent / "audio" / "three_beeps.wav")
    options = ["--model", str(tmp_path), "--audio", clip, "--prompt", "How many?", "--max-new-tokens", "8"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out.strip()
    processor, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForAudioTextToText.from_pretrained(tmp_path)
    content = [{"type": "audio", "audio": clip}, {"type": "text", "text": "How many?"}]
    inputs = processor.conversation_inputs([[{"role": "user", "content": content}]], chat=True)
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, compile=False).asnumpy()
    assert not end.value.code and said
    assert said == processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_it_is_taught_like_the_others(folders, tmp_path):
    """New adapters go on top of the checkpoint's own, for rows with audio and for those without."""
    model = AutoModelForAudioTextToText.from_pretrained(folders["transformers"])
    case = phi4.phi4_cases()["one clip"]()
    before = model(**case).logits.asnumpy()
    adapted = add_lora(model, LoraSettings(r=2))
    names = {
        name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in adapted.parameters_and_names() if ".default." in name
    }
    assert names >= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert relative_error(adapted(**case).logits.asnumpy(), before) < 1e-6  # B is zero
    adapted.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in stored)
