"""Inputs of Audio Flamingo 3 for models and processors, used by the tests and by what records their references."""

import json
from collections.abc import Callable
from pathlib import Path

import helpers
import numpy as np
from helpers_processor import RATE, byte_tokenizer, tone

GOLDENS = Path(__file__).parent / "goldens"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<sound>"]
# Windows of 2 s and 8 mels, and at most five of them, keep recordings small.
WINDOW, LONGEST, MELS = 2, 10, 8  # s, s, bins

# What the published template does: a system prompt unless one is given, and in each message the placeholder first.
TEMPLATE = """\
{%- set turns = messages -%}
{%- if turns[0].role != "system" -%}
  {%- set turns = [{"role": "system", "content": "You are a helpful assistant."}] + turns -%}
{%- endif -%}
{%- for turn in turns -%}
  {{ "<|im_start|>" ~ turn.role ~ "\\n" }}
  {%- if turn.content is string -%}
    {{ turn.content }}
  {%- else -%}
    {{ "<sound>" if turn.content | selectattr("type", "equalto", "audio") | list }}
    {{- turn.content | selectattr("type", "equalto", "text") | map(attribute="text") | join }}
  {%- endif -%}
  {{ "<|im_end|>\\n" }}
{%- endfor -%}
{{ "<|im_start|>assistant\\n" if add_generation_prompt }}"""

ANSWERS = [
    'The spoken content of the audio is "hello there".',
    "The transcription of the audio is 'it's late'.",
    "The content of the input audio is  no quotes ",
    '"quoted." ',
    "plain.",
    "'unequal\"",
    "The spoken content of the audio is",
    ".",
    "",
]


def tokenizer():
    """Byte-level, with the published special tokens in their order."""
    return byte_tokenizer(SPECIAL_TOKENS, eos_token="<|im_end|>")


def write_checkpoint(folder: Path) -> Path:
    """A whole checkpoint: transformers 5's processor, a model of random weights that fits it, and where it stops."""
    from mindspore import Tensor

    from mindone_audio import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor

    sizes, words = json.loads((GOLDENS / "audioflamingo3" / "config.json").read_text()), tokenizer()
    sizes["audio_config"].update(num_mel_bins=MELS, max_source_positions=50 * WINDOW)
    sizes["text_config"].update(vocab_size=len(words), num_hidden_layers=1, layer_types=None)
    config = AudioFlamingo3Config(**{**sizes, "audio_token_id": len(words) - 1})
    model, rng = AudioFlamingo3ForConditionalGeneration(config), np.random.default_rng(0)
    for _, parameter in model.parameters_and_names():  # as large as those of `random_weights`
        spread = 0.3 if parameter.ndim < 2 else 1.6 / np.prod(parameter.shape[1:]) ** 0.5
        values = rng.normal(parameter.ndim < 2 and parameter.name.endswith("weight"), spread, parameter.shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    model.save_pretrained(folder)
    AudioFlamingo3Processor.from_pretrained(GOLDENS / "audioflamingo3_processor").save_pretrained(folder)
    stops = {"eos_token_id": [words.convert_tokens_to_ids("<|im_end|>")]}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    return folder


def model_cases() -> dict[str, Callable[[], dict]]:
    """Clips of several windows, the last of them of 21 frames, of 33, and of 2, which are too few for a token."""
    one, text = helpers.prompt([1, "a101", 9], 2), helpers.prompt([4], 3)
    three = helpers.prompt([2, "a9", 1, "a42", 1, "a73", 2], 4)
    clips = helpers.clips([40, 40, 21, 9, 40, 2, 40, 33], 2)
    windows = {
        "input_features": clips["input_features"],
        "input_features_mask": clips["feature_attention_mask"],
    }
    first, rest = ({name: value[part] for name, value in windows.items()} for part in (slice(3), slice(3, None)))
    return {
        "one clip": lambda: {**helpers.batch([one]), **first},
        "text only": lambda: helpers.batch([text]),
        "three clips": lambda: {**helpers.batch([three]), **rest},
        "batch": lambda: {**helpers.batch([one, text, three]), **windows},
    }


def conversation(clip, answer: str | None = None, question: str = "What happens?", system: str | None = None):
    """The question before the clip, as the published examples have it."""
    content = [{"type": "text", "text": question}, {"type": "audio", "audio": clip}]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    return messages + ([{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else [])


def processor_cases() -> dict[str, tuple[str, dict]]:
    """By name: a method of the processor and its arguments, but for return_tensors and truncation."""
    short, long = tone(0.7, seed=1), tone(4.6, seed=2)  # one window, three
    chat = {"tokenize": True, "return_dict": True}
    edges = [321, WINDOW * RATE, WINDOW * RATE + 1, WINDOW * RATE + 321, 12345, LONGEST * RATE]
    return {
        "chat": ("apply_chat_template", {"conversation": conversation(long), "add_generation_prompt": True, **chat}),
        "labels": (
            "apply_chat_template",
            {
                "conversation": [conversation(short, "A dog."), conversation(long, "Rain, café.", system="Be brief.")],
                "output_labels": True,
                **chat,
            },
        ),
        "edges": (
            "__call__",
            {"text": ["<sound>" + "x" * i for i in range(6)], "audio": [tone(n / RATE, seed=n) for n in edges]},
        ),
        "text": ("__call__", {"text": ["no audio", "none here either"], "output_labels": True}),
        "too_long": ("__call__", {"text": "<sound>", "audio": tone(LONGEST + 0.5)}),
        "transcribe": ("apply_transcription_request", {"audio": short}),
        "transcribe_two": ("apply_transcription_request", {"audio": [short, long], "prompt": [None, "Write it down."]}),
    }


def real_case() -> dict:
    """For the published sizes, 128 mels and 30 s windows: three windows, the loudest part in the first."""
    clip = tone(65.4321, seed=3)
    clip[30 * RATE :] *= 0.1
    return {"text": "<sound>What is it?", "audio": clip}


def sample(features: np.ndarray) -> np.ndarray:
    """Every 16th mel and 97th frame, to compare large features by."""
    return features[:, ::16, ::97]
