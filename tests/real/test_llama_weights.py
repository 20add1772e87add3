"""SmolLM2, and the encoder of Whisper tiny.en, in the classes here that take them, against PyTorch in float32."""

import json

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers import relative_error
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor
from mindone_audio.inputs.audio import load_audio
from mindone_audio.models.ichigo.model import IchigoForConditionalGeneration

TOLERANCE = 1e-4
NEW_TOKENS = 64
STACK, MIDDLE = 8, 256
QUESTIONS = (
    "What is the capital of France?",
    "Write a short story about a fox and a crow.",
    "Explain in three sentences why the sky is blue.",
    "List five animals that live in the sea, and say what each of them eats.",
    "def fibonacci(n):",
)


@pytest.fixture(scope="module")
def torch_llama(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def torch_encoder(whisper_tiny_en):
    whisper = WhisperForConditionalGeneration.from_pretrained(
        whisper_tiny_en, dtype=torch.float32, attn_implementation="eager"
    )
    return whisper.model.encoder.eval()


@pytest.fixture(scope="module")
def projector() -> dict[str, np.ndarray]:
    """Random: no trained projector is published between these two models."""
    rng = np.random.default_rng(0)
    width = 384 * STACK
    return {
        "ln_pre.weight": rng.normal(1, 0.2, width).astype(np.float32),
        "linear_1.weight": rng.normal(0, width**-0.5, (2 * MIDDLE, width)).astype(np.float32),
        "ln_mid.weight": rng.normal(1, 0.2, MIDDLE).astype(np.float32),
        "linear_2.weight": rng.normal(0, 0.2 * MIDDLE**-0.5, (576, MIDDLE)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def ultravox_folder(smollm2, whisper_tiny_en, projector, tmp_path_factory):
    """A repository as Ultravox's are: a projector, and the names of the two models that it joins."""
    folder = tmp_path_factory.mktemp("ultravox")
    config = {
        **{"model_type": "ultravox", "text_model_id": str(smollm2), "audio_model_id": str(whisper_tiny_en)},
        **{"stack_factor": STACK, "hidden_size": 2 * MIDDLE, "projector_act": "swiglu", "projector_ln_mid": True},
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    named = {f"multi_modal_projector.{name}": value for name, value in projector.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def ultravox(ultravox_folder):
    return AutoModelForAudioTextToText.from_pretrained(ultravox_folder, mindspore_dtype=ms.float32)


@pytest.fixture(scope="module")
def ichigo(smollm2):
    return IchigoForConditionalGeneration.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def processor(ultravox_folder):
    return AutoProcessor.from_pretrained(ultravox_folder)


def chat(tokenizer, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def assert_equal(ours, inputs: dict, llama, embeddings: torch.Tensor | None = None) -> None:
    """Logits at every position within the tolerance and 64 greedy tokens equal, of one prompt.

    embeddings: (1, length, hidden), what PyTorch's Llama takes instead of the tokens.
    """
    ids = torch.from_numpy(np.asarray(inputs["input_ids"]))
    taken = {"input_ids": ids} if embeddings is None else {"inputs_embeds": embeddings}
    taken["attention_mask"] = torch.ones_like(ids)
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    with torch.no_grad():
        logits = llama(**taken).logits.numpy()
        expected = llama.generate(**taken, **settings)[0, -NEW_TOKENS:].tolist()
    error = relative_error(ours(**inputs).logits.asnumpy(), logits)
    print(f"logits of {ids.shape[1]} tokens: relative error {error:.1e}")
    assert error < TOLERANCE
    tokens = ours.generate(**inputs, **settings).asnumpy()[0, ids.shape[1] :].tolist()
    assert tokens == expected
    assert len(set(tokens)) > 3


@pytest.mark.parametrize("question", QUESTIONS)
def test_ultravox_says_what_llama_says(ultravox, processor, torch_llama, question):
    assert_equal(ultravox, processor(text=chat(processor.tokenizer, question)), torch_llama)


@pytest.mark.parametrize("question", QUESTIONS[1:3])
def test_ichigo_says_what_llama_says(ichigo, smollm2, torch_llama, question):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert_equal(ichigo, dict(tokenizer(chat(tokenizer, question), return_tensors="np")), torch_llama)


def test_a_padded_batch_says_what_its_prompts_say(ultravox, processor):
    settings = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}
    texts = [chat(processor.tokenizer, question) for question in QUESTIONS[:2]]
    together = ultravox.generate(**processor(text=texts), **settings).asnumpy()[:, -24:]
    single = [ultravox.generate(**processor(text=text), **settings).asnumpy()[0, -24:] for text in texts]
    assert together.tolist() == [tokens.tolist() for tokens in single]


@torch.no_grad()
def encode(encoder, features: np.ndarray) -> torch.Tensor:
    """What Whisper makes of log-mels (1, bins, frames) of any even number of frames, by the layers of transformers.

    Its own forward takes whole windows alone; for these the two are the same.
    """
    x = torch.from_numpy(np.ascontiguousarray(features))
    if x.shape[2] == 2 * encoder.config.max_source_positions:
        return encoder(x).last_hidden_state
    x = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(x)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None, layer_head_mask=None)[0]
    return encoder.layer_norm(x)


def rms_norm(x: torch.Tensor, weight: np.ndarray) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * torch.from_numpy(weight)


def project(audio: torch.Tensor, projector: dict[str, np.ndarray]) -> torch.Tensor:
    """Ultravox's projector with SwiGLU: (1, positions, 384) to (1, positions / 8 rounded up, 576)."""
    audio = torch.nn.functional.pad(audio, (0, 0, 0, -audio.shape[1] % STACK))
    x = rms_norm(audio.reshape(1, -1, STACK * audio.shape[2]), projector["ln_pre.weight"])
    x, gate = (x @ torch.from_numpy(projector["linear_1.weight"]).T).chunk(2, -1)
    x = rms_norm(torch.nn.functional.silu(gate) * x, projector["ln_mid.weight"])
    return x @ torch.from_numpy(projector["linear_2.weight"]).T


@pytest.mark.parametrize("seconds", [11.0, 3.2])
def test_ultravox_hears_what_llama_is_given(ultravox, processor, torch_llama, torch_encoder, projector, jfk, seconds):
    """PyTorch's Llama gets what transformers' Whisper encoder makes of the clip, in the places of the audio."""
    clip = load_audio(jfk)[: round(seconds * 16_000)]
    inputs = processor(text=chat(processor.tokenizer, "Repeat what is said: <|audio|>"), audio=[clip])
    audio = project(encode(torch_encoder, inputs["audio_values"]), projector)
    start, count = (int(inputs[name][0]) for name in ("audio_token_start_idx", "audio_token_len"))
    assert audio.shape[1] == count >= 20
    embeddings = torch_llama.get_input_embeddings()(torch.from_numpy(inputs["input_ids"])).detach()
    embeddings[:, start : start + count] = audio
    assert_equal(ultravox, dict(inputs), torch_llama, embeddings)


def assert_encoded(model, features: np.ndarray, encoder) -> float:
    """Features (1, bins, frames) go through our encoder, widened with zeros as the model does: the relative error."""
    frames, tower = features.shape[2], model.audio_tower
    wide = np.zeros((1, features.shape[1], tower.config.frames_to_encode(frames)), np.float32)
    wide[:, :, :frames] = features
    ours = tower(ms.Tensor(wide), ms.Tensor([[frames, frames]], ms.int32)).asnumpy()[:, : frames // 2]
    error = relative_error(ours, encode(encoder, features).numpy())
    assert error < TOLERANCE
    return error


def test_the_encoder_is_whispers_on_windows_of_speech(ultravox, torch_encoder, whisper_tiny_en, real_speech):
    """Whole windows, as transformers' encoder takes them, of every eighth recording."""
    extractor = WhisperProcessor.from_pretrained(whisper_tiny_en).feature_extractor
    errors = {}
    for entry in real_speech[::8]:
        clip = load_audio(entry["path"])[: 30 * 16_000]
        features = extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"]
        errors[entry["file"]] = assert_encoded(ultravox, features, torch_encoder)
    print(f"{len(errors)} recordings, largest relative error {max(errors.values()):.1e}")


@pytest.mark.parametrize("frames", [2, 30, 494, 496, 1000, 1100])
def test_the_encoder_is_whispers_on_short_clips(ultravox, torch_encoder, processor, jfk, frames):
    clip = load_audio(jfk)[: frames * 160]
    features = processor._whole_mels([clip])[0]
    error = assert_encoded(ultravox, np.asarray(features)[:, :, :frames], torch_encoder)
    print(f"{frames} frames: relative error {error:.1e}")
