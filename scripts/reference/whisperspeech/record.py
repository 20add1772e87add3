"""The golden of WhisperVQ: a tiny quantiser and Whisper, and what whisperspeech makes of clips, into tests/goldens.

python -m venv reference && reference/bin/pip install -r scripts/reference/whisperspeech/requirements.txt
reference/bin/python scripts/reference/whisperspeech/record.py
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("tests", "scripts"))]
for decoder in ("torchaudio", "torio", "torio.io", "torio.io._streaming_media_decoder"):
    sys.modules[decoder] = MagicMock()  # whisperspeech imports them to decode files, and here it is given samples

import convert_whisper_vq  # noqa: E402
import helpers_whisper_vq  # noqa: E402
import whisper  # noqa: E402
from random_weights import randomise_parameters  # noqa: E402
from whisperspeech.vq_stoks import RQBottleneckTransformer  # noqa: E402

COMMAND = "python scripts/reference/whisperspeech/record.py"
HEADS, WIDTH, LAYERS, CODES = 3, 12, 2, 40
PACKAGES = ("torch", "whisperspeech", "vector_quantize_pytorch", "openai-whisper", "transformers")

# Names in OpenAI's Whisper, and in the checkpoint of transformers.
WHISPER_NAMES = (
    ("blocks.", "layers."),
    ("attn.query", "self_attn.q_proj"),
    ("attn.key", "self_attn.k_proj"),
    ("attn.value", "self_attn.v_proj"),
    ("attn.out", "self_attn.out_proj"),
    ("attn_ln", "self_attn_layer_norm"),
    ("mlp_ln", "final_layer_norm"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("ln_post", "layer_norm"),
    ("positional_embedding", "embed_positions.weight"),
)


def make_whisper() -> whisper.model.Whisper:
    """OpenAI's class with the smallest sizes; its window is Whisper's 30 s."""
    dims = whisper.model.ModelDimensions(80, 1500, WIDTH, HEADS, LAYERS, 20, 4, WIDTH, HEADS, 1)
    return randomise_parameters(whisper.model.Whisper(dims).eval())


def save_whisper(model: whisper.model.Whisper, folder: Path) -> None:
    """Write it as transformers does, and check that the encoder computes the same there."""
    config = WhisperConfig(
        **{"num_mel_bins": 80, "d_model": WIDTH, "vocab_size": 20, "max_target_positions": 4, "pad_token_id": 0},
        **{
            f"{part}_{field}": size
            for part in ("encoder", "decoder")
            for field, size in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 4 * WIDTH))
        },
    )
    config.decoder_layers = 1
    copied = WhisperForConditionalGeneration(config).eval()
    state = {}
    for name, tensor in model.encoder.state_dict().items():
        for theirs, ours in WHISPER_NAMES:
            name = name.replace(theirs, ours)
        state[name] = tensor
    copied.model.encoder.load_state_dict(state)
    copied.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    mel = torch.randn(1, 80, 3000)
    torch.testing.assert_close(copied.model.encoder(mel)[0], model.encoder(mel), rtol=1e-4, atol=1e-4)


def make_quantiser(whisper_model: whisper.model.Whisper) -> RQBottleneckTransformer:
    """whisperspeech's class, with the settings of Ichigo's file and the smallest sizes."""
    model = RQBottleneckTransformer(
        **{"vq_codes": CODES, "codebook_dim": 5, "n_head": HEADS, "head_width": WIDTH // HEADS, "q_depth": 1},
        **{"use_cosine_sim": True, "downsample": 2, "threshold_ema_dead_code": 0, "whisper_model_name": "medium"},
    )
    randomise_parameters(model.eval())
    model.whmodel = [whisper_model]  # instead of downloading Whisper-medium
    return model


@torch.no_grad()
def spread(model: RQBottleneckTransformer, samples: np.ndarray) -> None:
    """Move and scale the projection so that the clip gets most of the tokens, as a trained one does."""
    kept = {}
    handle = model.rq.project_in.register_forward_hook(lambda module, args, output: kept.update(value=output[0]))
    model.encode_audio(torch.from_numpy(samples)[None])
    handle.remove()
    scale = kept["value"].std(0)
    model.rq.project_in.bias.sub_(kept["value"].mean(0)).div_(scale)
    model.rq.project_in.weight.div_(scale[:, None])


@torch.no_grad()
def record(model: RQBottleneckTransformer, samples: np.ndarray) -> dict[str, np.ndarray]:
    """What encode_audio computes on its way from samples to tokens, at some of the frames."""
    kept = {}
    watched = {"encoder": model.whmodel[0].encoder, "projected": model.rq.project_in}
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: kept.update({name: output.numpy()[0]}))
        for name, module in watched.items()
    ]
    tokens = model.encode_audio(torch.from_numpy(samples)[None])[0].numpy().astype(np.int32)
    for handle in handles:
        handle.remove()
    log_mel = model.log_mel_spectrogram(torch.from_numpy(samples)[None])[0].numpy()
    projected = kept["projected"] / np.linalg.norm(kept["projected"], axis=-1, keepdims=True)
    similarity = np.sort(projected @ model.rq.layers[0]._codebook.embed[0].numpy().T, -1)
    margins = (similarity[:, -1] - similarity[:, -2])[: len(tokens)]
    print(f"{len(samples)} samples, {len(tokens)} tokens, {len(set(tokens))} different, margin {margins.min():.1e}")
    return {
        "frames": np.array(log_mel.shape[-1]),
        "log_mel": helpers_whisper_vq.some_frames(log_mel),
        "encoder": kept["encoder"][::25],
        "projected": kept["projected"],
        "tokens": tokens,
        "margins": margins,
    }


def main() -> None:
    """Write the golden."""
    golden = helpers_whisper_vq.GOLDEN
    golden.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    whisper_model = make_whisper()
    save_whisper(whisper_model, helpers_whisper_vq.WHISPER)
    model = make_quantiser(whisper_model)
    spread(model, helpers_whisper_vq.clips()["window"])
    model.save_model(helpers_whisper_vq.VQ_FILE)
    convert_whisper_vq.convert(
        helpers_whisper_vq.VQ_FILE, str(helpers_whisper_vq.WHISPER), helpers_whisper_vq.CONVERTED
    )
    arrays = {
        f"{clip}.{name}": np.ascontiguousarray(value)
        for clip, samples in helpers_whisper_vq.clips().items()
        for name, value in record(model, samples).items()
    }
    facts = {name: version(name) for name in PACKAGES} | {"python": platform.python_version(), "command": COMMAND}
    save_file(arrays, golden / "clips.safetensors", metadata={"facts": json.dumps(facts)})


if __name__ == "__main__":
    main()
