"""Record what transformers on PyTorch computes for a checkpoint, a clip and a prompt, for `mindone-audio parity`.

    python scripts/record_parity.py --model Qwen/Qwen2-Audio-7B --audio clip.wav --prompt "..." --out ref.safetensors

Needs PyTorch and transformers only (any version that has the family). One file comes out: the model's inputs, the
encoder's and the projector's output, the hidden state after every n-th layer of the language model, the logits of the
last positions and the greedy tokens, with the versions and the dtype they were computed with. Activations are stored as
float32, which holds bfloat16 and float16 exactly. A recording for bfloat16 must be made with --dtype bfloat16: then
both sides round alike, and what differs is the port.
"""

import argparse
import inspect
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FORMAT = "mindone_audio.parity/1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHOUT_TOKENS = ("SpeechT5ForTextToSpeech", "SpeechT5ForSpeechToSpeech")


def load_model(name: str, dtype: torch.dtype, device: str):
    """The class that the checkpoint's config names, with eager attention: of Qwen2.5-Omni the thinker, and Phi-4's with
    the speech adapter."""
    config = transformers.AutoConfig.from_pretrained(name)
    architecture = (config.architectures or ["none"])[0]
    if config.model_type == "qwen2_5_omni":
        architecture = "Qwen2_5OmniThinkerForConditionalGeneration"
    if not hasattr(transformers, architecture):
        raise ValueError(
            f"{name} needs the class {architecture}, which transformers {transformers.__version__} does not have"
        )
    if architecture in WITHOUT_TOKENS:
        raise ValueError(f"{name} is a {architecture}, which makes sound and no tokens: there are no recordings of it")
    model = getattr(transformers, architecture).from_pretrained(name, dtype=dtype, attn_implementation="eager")
    if config.model_type == "phi4_multimodal":
        folder = Path(name) / "speech-lora"
        where = (folder, {}) if folder.is_dir() else (name, {"subfolder": folder.name})
        model.load_adapter(str(where[0]), adapter_kwargs=where[1])  # by PEFT
    return model.eval().to(device)


def processor_inputs(name: str, audio: list[str], prompt: str, text: str | None = None) -> dict[str, torch.Tensor]:
    """What the checkpoint's processor makes of the clips and a prompt that has their placeholders."""
    import librosa

    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type in ("seamless_m4t_v2", "speecht5"):  # of which AutoProcessor may not know the first
        seamless = config.model_type == "seamless_m4t_v2"
        of_family = transformers.SeamlessM4TProcessor if seamless else transformers.SpeechT5Processor
        processor = of_family.from_pretrained(name)
        source, ids = one_source(processor, audio, text), answer_begins(processor, prompt)
        return {**source, "decoder_input_ids": torch.tensor([[config.decoder_start_token_id, *ids]])}
    processor = transformers.AutoProcessor.from_pretrained(name)
    if text is not None:
        raise ValueError("--text is what SeamlessM4T translates: give this model its words in --prompt")
    if isinstance(processor, transformers.WhisperProcessor):  # the prompt is what the answer begins with
        if not audio:
            raise ValueError("no --audio was given: Whisper needs at least one clip")
        rate = processor.feature_extractor.sampling_rate
        clips = [librosa.load(path, sr=rate)[0] for path in audio]
        ids = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        features = processor(clips, sampling_rate=rate, return_tensors="pt").input_features
        return {"input_features": features, "decoder_input_ids": ids.repeat(len(clips), 1)}
    if "audio" not in inspect.signature(processor.__call__).parameters:  # Voxtral's
        return dict(processor.apply_chat_template(chat(audio, prompt, processor.audio_token)))
    rate = processor.feature_extractor.sampling_rate
    clips = [librosa.load(path, sr=rate)[0] for path in audio]
    return dict(processor(text=prompt, audio=clips or None, sampling_rate=rate, return_tensors="pt"))


def one_source(processor, audio: list[str], text: str | None) -> dict[str, torch.Tensor]:
    """One clip, or one text for SeamlessM4T, without padding: transformers lets a clip hear the padding behind it."""
    import librosa

    if text is not None and isinstance(processor, transformers.SpeechT5Processor):
        raise ValueError("--text is what SeamlessM4T translates, and SpeechT5 writes down what is said: give --audio")
    if len(audio) + (text is not None) != 1:
        raise ValueError(
            f"{len(audio)} clips and {int(text is not None)} texts were given: give one clip, or SeamlessM4T one text. "
            "In a batch transformers lets the shorter clips of this family hear their padding"
        )
    if text is not None:
        processor.tokenizer.src_lang = "eng"
        return {"input_ids": processor.tokenizer(text, padding=False, return_tensors="pt").input_ids}
    extractor = processor.feature_extractor
    samples = librosa.load(audio[0], sr=extractor.sampling_rate)[0]
    made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt", return_attention_mask=True)
    name = extractor.model_input_names[0]
    return {name: made[name][:, : int(made["attention_mask"].sum())]}


def answer_begins(processor, prompt: str) -> list[int]:
    """The tokens behind the start token that the prompt says: a language's for SeamlessM4T, or words for SpeechT5."""
    tokenizer = processor.tokenizer
    if isinstance(processor, transformers.SpeechT5Processor):
        return tokenizer(prompt, add_special_tokens=False).input_ids
    language = tokenizer.convert_tokens_to_ids(prompt)
    if not prompt.startswith("__") or language in (None, tokenizer.unk_token_id):
        raise ValueError(f"--prompt {prompt!r} is no language of SeamlessM4T: give the one to write, such as __fra__")
    return [language]


def chat(audio: list[str], prompt: str, placeholder: str) -> list[dict]:
    """A conversation of one message: the clips where the prompt has placeholders, or all before it if it has none."""
    texts = prompt.split(placeholder) if placeholder in prompt else [""] * len(audio) + [prompt]
    if len(texts) != len(audio) + 1:
        raise ValueError(f"the prompt has {len(texts) - 1} times {placeholder} and {len(audio)} clips were given")
    content = [{"type": "text", "text": texts[0]}]
    for path, text in zip(audio, texts[1:]):
        content += [{"type": "audio", "path": path}, {"type": "text", "text": text}]
    return [{"role": "user", "content": [element for element in content if element.get("text") != ""]}]


def find(model: torch.nn.Module, ending: str) -> torch.nn.Module | None:
    """The outermost submodule whose name ends so (transformers 4 and 5 nest them differently)."""
    names = sorted((n for n, _ in model.named_modules() if n == ending or n.endswith(f".{ending}")), key=len)
    return model.get_submodule(names[0]) if names else None


def first_found(model: torch.nn.Module, endings: tuple[str, ...]) -> torch.nn.Module | None:
    """What `find` finds of the first of these endings that there is."""
    return next((module for ending in endings if (module := find(model, ending)) is not None), None)


def first_tensor(output) -> torch.Tensor:
    """The tensor of a module's output, which may be a tuple or a ModelOutput."""
    return output if isinstance(output, torch.Tensor) else output[0]


def encoder_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.nn.Module | None:
    """The encoder that hears or, where there are two, reads these inputs."""
    if not is_seq2seq(model):
        return first_found(model, ("audio_tower", "audio_embed.encoder"))
    return first_found(model, ("text_encoder" if "input_ids" in inputs else "speech_encoder", "encoder"))


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The layers of the language model, or of an encoder-decoder model's decoder."""
    names = ("text_decoder", "decoder") if is_seq2seq(model) else ("language_model", "model")
    decoder = first_found(model, names) or model
    return next(m for n, m in decoder.named_modules() if n == "layers" or n.endswith(".layers"))


def is_seq2seq(model: torch.nn.Module) -> bool:
    """Whether the model's decoder attends to its encoder."""
    return bool(model.config.is_encoder_decoder)


def greedy(model: torch.nn.Module, inputs: dict[str, torch.Tensor], new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The best next tokens int32 (batch, length) of an encoder-decoder model, and how far each is ahead of the next.

    They stop where all have ended, or chosen padding, which has no position in some families of transformers.
    `generate` is not asked: families forbid tokens in it, which is no matter of parity.
    """
    ids, heard = inputs["decoder_input_ids"], model(**inputs).encoder_last_hidden_state
    source = {"encoder_outputs": (heard,), "attention_mask": inputs.get("attention_mask")}
    begin, margins = ids.shape[1], []
    ends = torch.tensor([model.config.eos_token_id, model.config.pad_token_id], device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(new_tokens):
        best = model(**source, decoder_input_ids=ids).logits[:, -1].float().topk(2, -1)
        margins.append(best.values[:, 0] - best.values[:, 1])
        ids = torch.cat([ids, best.indices[:, :1]], 1)
        ended |= torch.isin(ids[:, -1], ends)
        if ended.all():
            break
    return ids[:, begin:].cpu().numpy().astype(np.int32), torch.stack(margins, 1).cpu().numpy()


@torch.no_grad()
def record(
    model, inputs: dict[str, torch.Tensor], every: int, positions: int, new_tokens: int, labels=None, **settings
) -> dict[str, np.ndarray]:
    """All arrays of a recording: "input.*", "encoder", "projector", "layer.N" (1 is the first), "logits", "tokens",
    "margins" (between the best two logits of each token), and "labels" and "loss" where labels are given.

    settings: more of `generate`'s, such as pad_token_id.
    """
    arrays = {f"input.{name}": value.cpu().numpy().copy() for name, value in inputs.items()}  # a model may change them
    layers = decoder_layers(model)
    projector = first_found(model, ("multi_modal_projector", "down_proj_for_speech"))
    watched = {"encoder": encoder_of(model, inputs), "projector": projector}
    last = slice(-positions, None)
    for number, layer in enumerate(layers, start=1):
        if number % every == 0 or number in (1, len(layers)):
            watched[f"layer.{number}"] = layer

    def keep(name: str):
        def hook(module, args, output):
            value = first_tensor(output).float().cpu().numpy()
            arrays[name] = np.ascontiguousarray(value[:, last] if name.startswith("layer.") else value)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items() if module is not None]

    def copied() -> dict[str, torch.Tensor]:
        kinds = {k: model.dtype if v.is_floating_point() else v.dtype for k, v in inputs.items()}
        return {k: v.to(model.device, kinds[k], copy=True) for k, v in inputs.items()}

    logits = model(**copied()).logits
    for handle in handles:
        handle.remove()
    if "encoder" in arrays and arrays["encoder"].ndim == 2:  # Qwen's: the rows of all clips, one after another
        if "projector" not in arrays:  # Qwen2.5-Omni's encoder projects too
            arrays["projector"] = arrays.pop("encoder")
    elif "projector" in arrays and arrays["projector"].ndim == 2:  # Voxtral's rows of all windows, one after another
        rows, width = arrays["projector"].shape
        arrays["projector"] = arrays["projector"].reshape((len(arrays["encoder"]), -1, width))
    arrays["logits"] = np.ascontiguousarray(logits[:, last].float().cpu().numpy())
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
        loss = model(**copied(), labels=torch.from_numpy(arrays["labels"]).to(model.device)).loss
        arrays["loss"] = loss.float().cpu().numpy()
    if is_seq2seq(model):
        arrays["tokens"], arrays["margins"] = greedy(model, copied(), new_tokens)
        return arrays
    generated = model.generate(
        **copied(),
        **settings,
        max_new_tokens=new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    arrays["tokens"] = generated.sequences[:, inputs["input_ids"].shape[1] :].cpu().numpy().astype(np.int32)
    best = torch.stack([step.float().topk(2, -1).values for step in generated.logits], 1)  # (batch, tokens, 2)
    arrays["margins"] = (best[..., 0] - best[..., 1]).cpu().numpy()  # a small one explains a token that differs
    return arrays


def save(arrays: dict[str, np.ndarray], file: Path, model, **facts) -> None:
    """Write a recording, with the model's kind and size and the versions that made it among its facts."""
    facts = {
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "layers": len(decoder_layers(model)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        **facts,
    }
    save_file(arrays, file, metadata={"format": FORMAT, "facts": json.dumps(facts)})


def main() -> int:
    """Parse the command line, record, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="checkpoint folder or hub name")
    parser.add_argument("--audio", action="append", default=[], help="a clip; several times for several placeholders")
    parser.add_argument("--text", help="English that SeamlessM4T translates, in place of a clip")
    parser.add_argument(
        "--prompt",
        required=True,
        help="the text with its audio placeholders, as the processor takes it (Voxtral: the "
        "user's message; without placeholders the clips come first; Whisper: the tokens that the answer begins with; "
        "SeamlessM4T: the language to write, such as __fra__; SpeechT5: '', or words that the answer begins with)",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu", help="of PyTorch")
    parser.add_argument("--every", type=int, default=4, help="record the hidden state after every n-th layer")
    parser.add_argument("--positions", type=int, default=16, help="of hidden states and logits, the last ones")
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()
    try:
        model = load_model(args.model, DTYPES[args.dtype], args.device)
        inputs = processor_inputs(args.model, args.audio, args.prompt, args.text)
        arrays = record(model, inputs, args.every, args.positions, args.new_tokens)
        save(arrays, args.out, model, prompt=args.prompt)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(arrays)} arrays, {args.out.stat().st_size / 1e6:.1f} MB, {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
