"""What one call of `generate` was asked for: the checkpoint's generation_config.json with the caller's changes.

Every value of a request, wherever it comes from, is checked here: by `GenerationSettings`, `settle` and
`split_request`, before anything runs.
"""

import copy
import dataclasses
import logging
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mindone_audio.generation.constraint import KINDS, check_constraint
from mindone_audio.generation.text_stream import check_stops
from mindone_audio.setting_fields import MAX_NEW_TOKENS, SettingError, explained, refusal, setting

logger = logging.getLogger(__name__)

LARGEST = 2**31 - 1  # of token ids and lengths, which are int32
_ANY = object()
# The other fields of Hugging Face's GenerationConfig and arguments of its `generate`, with the values at which they
# change nothing here; None always does.
_NO_EFFECT: dict[str, Any] = {
    # How it is computed, and what only a draft model or an encoder-decoder model reads.
    **dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "return_legacy_cache"), _ANY),
    **dict.fromkeys(("prefill_chunk_size", "compile_config", "disable_compile", "low_memory", "synced_gpus"), _ANY),
    **dict.fromkeys(("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"), _ANY),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_lookbehind"), _ANY),
    "target_lookbehind": _ANY,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "trust_remote_code"), _ANY),
    **dict.fromkeys(("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash"), _ANY),
    # What `generate` returns: tokens and nothing else.
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (False,)),
    "return_dict_in_generate": (False,),
    # Other ways to choose tokens.
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty", "guidance_scale", "num_beam_groups"), (1,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "penalty_alpha", "diversity_penalty"), (0,)),
    "encoder_no_repeat_ngram_size": (0,),
    **dict.fromkeys(("remove_invalid_values", "token_healing"), (False,)),
    "use_model_defaults": (True,),
    **dict.fromkeys(("max_time", "bad_words_ids", "force_words_ids", "constraints", "sequence_bias"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("watermarking_config", "assistant_early_exit", "dola_layers"), ()),
    **dict.fromkeys(("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "assistant_model"), ()),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate"), ()),
}
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "seed")  # without effect on greedy decoding
_SAMPLING_CUTS = (
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)  # without effect on greedy decoding, like those
# Arguments of `generate` that a caller of the pipeline may hand on to it, and inputs, which come from the request.
GENERATE_ARGUMENTS = ("generation_config", "streamer", "tokenizer", "compile")
_INPUTS = ("input_ids", "inputs", "attention_mask", "inputs_embeds", "input_features", "feature_attention_mask")


def whole(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """A whole number, from `low` to `high`, as an int: 20.0 and NumPy's are; `ValueError` for "20", True, 20.5, NaN."""
    limits = f"at least {low}" if high >= LARGEST else f"between {low} and {high}"
    is_whole = isinstance(value, numbers.Integral) or (_is_number(value) and float(value).is_integer())
    if isinstance(value, bool) or not is_whole:
        raise refusal(name, f" must be {limits}, not {value!r:.80}: give a whole number")
    if not low <= value <= high:
        limits = f"at most {high}" if value > high >= LARGEST else limits
        raise refusal(name, f" must be {limits}, not {value!r:.80}")
    return int(value)


def real(name: str, value: Any, low: float, high: float = math.inf, *, beyond: bool = False) -> float:
    """A finite number, from `low` (or `beyond` it) to `high`, as a float; `ValueError` for anything else."""
    limits = f"greater than {low}" if beyond else f"at least {low}" if high == math.inf else f"between {low} and {high}"
    limits = "a number" if low == -math.inf else limits
    if not _is_number(value) or not _is_finite(value) or not low <= value <= high or (beyond and value == low):
        hint = "" if _is_number(value) and _is_finite(value) else ": give a finite number"
        raise refusal(name, f" must be {limits}, not {value!r:.80}{hint}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False (NumPy's too) as a bool; `ValueError` for "false", 0 and anything else."""
    if not _is_flag(value):
        raise ValueError(f"{name} must be true or false, not {value!r:.80}")
    return bool(value)


def _token_ids(name: str, value: Any, low: int = 0) -> int | list[int]:
    if hasattr(value, "tolist") and not _is_number(value):  # NumPy's array
        value = value.tolist()
    return [whole(name, token, low) for token in value] if isinstance(value, list | tuple) else whole(name, value, low)


def _token_list(name: str, value: Any) -> list[int]:
    tokens = _token_ids(name, value)
    if not isinstance(tokens, list):
        raise ValueError(f"{name} must be a list of token ids, not {value!r:.80}")
    return tokens


def _biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise refusal(name, f" must be numbers by token ids, such as {{42: -100}}, not {value!r:.80}")
    ids = [int(token) if isinstance(token, str) and token.isascii() and token.isdigit() else token for token in value]
    return {whole(name, token, 0): real(name, number, -100, 100) for token, number in zip(ids, value.values())}


def _stop_strings(name: str, value: Any) -> list[str]:
    return check_stops(name, value)


def _early_stopping(name: str, value: Any) -> bool | str:
    if not (_is_flag(value) or (isinstance(value, str) and value == "never")):
        raise ValueError(f"{name} must be True, False or 'never', not {value!r:.80}")
    return value if isinstance(value, str) else bool(value)


def _temperature(name: str, value: Any) -> float:
    if _is_number(value) and value == 0:
        return 0.0  # which is greedy decoding, and refused with do_sample=True
    return real(name, value, 0, beyond=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    """Python's or NumPy's, which this module does not import: `doctor` reads the options where NumPy is broken."""
    return isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"))


def _is_finite(value: numbers.Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


_CHECKS = {
    **{name: partial(whole, low=1) for name in ("max_new_tokens", "max_length", "num_return_sequences", "num_beams")},
    **{name: partial(whole, low=0) for name in ("min_new_tokens", "min_length", "top_k", "no_repeat_ngram_size")},
    "max_matching_ngram_size": partial(whole, low=1),
    "prompt_lookup_num_tokens": partial(whole, low=0),
    "seed": partial(whole, low=0, high=2**64 - 1),
    **{name: partial(real, low=0, high=1) for name in ("top_p", "min_p")},
    "temperature": _temperature,
    "repetition_penalty": partial(real, low=0, beyond=True),
    **{name: partial(real, low=-2, high=2) for name in ("presence_penalty", "frequency_penalty")},
    "logit_bias": _biases,
    "length_penalty": partial(real, low=-math.inf),
    **{name: flag for name in ("do_sample", "renormalize_logits")},
    "early_stopping": _early_stopping,
    "eos_token_id": partial(_token_ids, low=-1),  # -1, as in Hugging Face: nothing ends
    "pad_token_id": _token_ids,
    **{name: _token_list for name in ("suppress_tokens", "begin_suppress_tokens")},
    "stop_strings": _stop_strings,
    "constraint": lambda name, value: check_constraint(value),
}


@explained
@dataclass(frozen=True)
class GenerationSettings:
    """Names, meanings and defaults are those of transformers' `GenerationConfig`; `seed` makes sampling repeatable.

    presence_penalty, frequency_penalty and logit_bias ({token id: what is added to its score}) are OpenAI's. Their
    penalties count tokens of the answer alone.

    constraint gives the answer a form: {"json_schema": …}, {"regex": …}, {"choice": […]} or {"grammar": …}, see
    `check_constraint`; each may also be given as a setting of its own.

    prompt_lookup_num_tokens changes the time that an answer takes, and no token: see docs/performance.md. At most 7 are
    tried at once, and max_matching_ngram_size is how many of the last tokens are looked for.

    max_length counts the prompt, max_new_tokens (which wins where both are given) does not; with neither, 20 new ones.
    Raises `ValueError` for a value of a wrong type or out of range, and for settings that do not go together. Whole
    numbers may be given as floats; without sampling a temperature of 0 is allowed.
    """

    max_new_tokens: int | None = setting(
        None,
        f"at most (pipelines and commands: {MAX_NEW_TOKENS[False]}, of a transcription {MAX_NEW_TOKENS[True]})",
        metavar="N",
    )
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = setting(False, "draw tokens instead of taking the best one each time")
    temperature: float = setting(1.0, "of sampling; 0 takes the best token each time", metavar="T")
    top_k: int = setting(50, "sample from the K best tokens", metavar="K")
    top_p: float = setting(1.0, "sample from the best tokens whose probabilities make P together", metavar="P")
    min_p: float | None = None
    repetition_penalty: float = setting(1.0, "above 1: tokens that are there already become less likely", metavar="X")
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    no_repeat_ngram_size: int = setting(0, "no N tokens in a row come twice", metavar="N")
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    renormalize_logits: bool = False
    seed: int | None = setting(None, "makes sampling repeatable", metavar="N")
    num_return_sequences: int = 1
    num_beams: int = setting(1, "beam search with N beams (default: 1)", metavar="N")
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    prompt_lookup_num_tokens: int | None = setting(
        None,
        "try up to N tokens at once that came before after the same ones; the answer stays what it is (default: 7 for "
        "an answer of a given form, else 0)",
        metavar="N",
    )
    max_matching_ngram_size: int = 2
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | list[int] | None = None
    stop_strings: str | list[str] | None = None
    constraint: dict[str, Any] | None = None

    def __post_init__(self):
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None or _DEFAULTS[name] is not None:
                object.__setattr__(self, name, check(name, value))
        if self.do_sample and self.temperature == 0:
            raise SettingError(
                lambda say: (
                    f"{say('temperature')} must be greater than 0, not {self.temperature}; for the most likely "
                    f"token each time use {say('do_sample', False)}"
                )
            )
        if self.num_beams > 1 and self.do_sample:
            raise SettingError(
                lambda say: (
                    f"{say('num_beams')} > 1 with {say('do_sample', True)} is not supported: choose beams or sampling"
                )
            )
        if self.num_beams > 1 and self.constraint is not None:
            kind = next(iter(self.constraint))
            raise SettingError(
                lambda say: f"{say('num_beams')} > 1 with {say(kind)} is not supported: leave one of them out"
            )
        if self.num_beams > 1 and self.prompt_lookup_num_tokens:
            raise SettingError(
                lambda say: (
                    f"{say('num_beams')} > 1 with {say('prompt_lookup_num_tokens')} is not supported: leave one of "
                    "them out"
                )
            )
        choices = self.num_beams if self.num_beams > 1 else (None if self.do_sample else 1)
        if choices is not None and self.num_return_sequences > choices:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} is more than the {choices} that num_beams="
                f"{self.num_beams} without sampling can give: raise num_beams or set do_sample=True"
            )

    @property
    def eos_token_ids(self) -> list[int]:
        """Every token that ends a sequence."""
        if self.eos_token_id is None:
            return []
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        return [token for token in ends if token >= 0]

    @property
    def padding(self) -> int:
        """What fills a sequence after its end: pad_token_id, else the first end token, else 0."""
        given = self.pad_token_id if isinstance(self.pad_token_id, list) else [self.pad_token_id]
        return [*(token for token in given if token is not None), *self.eos_token_ids, 0][0]

    @property
    def stops(self) -> list[str]:
        """Every string that ends a sequence."""
        return check_stops("stop_strings", self.stop_strings)

    def check_vocabulary(self, size: int) -> "GenerationSettings":
        """The settings; `ValueError` for a token id that a model of so many tokens has not."""
        for name in ("eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens", "logit_bias"):
            tokens = getattr(self, name)
            tokens = list(tokens) if isinstance(tokens, dict) else tokens
            beyond = [token for token in (tokens if isinstance(tokens, list) else [tokens or 0]) if token >= size]
            if beyond:
                raise ValueError(f"{name} has the token {beyond[0]}, but the model has the tokens 0 to {size - 1}")
        return self

    def resolve_length(self, prompt: int, max_positions: int) -> "GenerationSettings":
        """Settle max_new_tokens and min_new_tokens for a prompt of so many tokens in a model of so many positions."""
        if prompt > max_positions:
            raise PromptTooLongError(
                f"the prompt has {prompt} tokens, audio included, but the model has {max_positions} positions: "
                "use fewer or shorter clips, or less text"
            )
        new = self.max_new_tokens
        if new is None and self.max_length is not None:
            new = self.max_length - prompt
            if new < 1:
                raise ValueError(
                    f"max_length={self.max_length} leaves no room after the {prompt} tokens of the prompt, "
                    "audio included: raise it, or give max_new_tokens"
                )
        new = 20 if new is None else new
        if prompt + new > max_positions:
            logger.warning(
                "max_new_tokens=%d is cut to %d: the prompt takes %d of the model's %d positions",
                new,
                max_positions - prompt,
                prompt,
                max_positions,
            )
            new = max_positions - prompt
        least = max(self.min_new_tokens or 0, (self.min_length or 0) - prompt)
        return dataclasses.replace(self, max_new_tokens=new, min_new_tokens=least)


class PromptTooLongError(ValueError):
    """A prompt of more tokens than the model has positions."""


@dataclass(frozen=True)
class RequestOptions:
    """Parameters of a request that are the pipeline's own; `ValueError` as for `GenerationSettings`."""

    stop_sequence: str | list[str] | None = None
    return_full_text: bool = False
    return_token_count: bool = False
    language: str | None = None
    prompt: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "stop_sequence", check_stops("stop_sequence", self.stop_sequence))
        for name in ("return_full_text", "return_token_count"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.language is not None and not (isinstance(self.language, str) and self.language):
            raise ValueError(f'language must be a string such as "en", not {self.language!r:.80}')
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be a string, not {self.prompt!r:.80}")


def split_request(parameters: Mapping) -> tuple[RequestOptions, dict]:
    """Parameters of a request as what the pipeline reads of them, and settings of `generate`, which `settle` checks.

    Raises `ValueError` for the arguments of `generate` that are no settings.
    """
    if wrong := [name for name in parameters if name in (*GENERATE_ARGUMENTS, *_INPUTS)]:
        raise ValueError(f"unknown parameter {wrong[0]}: a request has settings of generate, which this is not")
    own = {field.name for field in dataclasses.fields(RequestOptions)}
    given = {name: value for name, value in parameters.items() if name in own and value is not None}
    return RequestOptions(**given), {name: value for name, value in parameters.items() if name not in own}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationSettings)}


def settle(
    base: Any, overrides: Mapping, given: Any = None, *, vocabulary: int | None = None, warn: bool = True
) -> GenerationSettings:
    """Settings of `base`, the model's, changed by `given`, the caller's, and both by `overrides`.

    base and given: a GenerationConfig, a dict, or None. As in Hugging Face, what an object leaves at its default is not
    set by it. vocabulary: tokens that the model has. warn: log what has no effect. Raises `ValueError` for a value that
    cannot be, and for a name that is not supported at the value given: nothing that changes the result is ignored.
    """
    own, asked = stored("the model's generation_config", base), stored("generation_config", given)
    # Fields that published files have for other programs, such as chat_format: objects and files may, callers may not.
    foreign = {name for name in own if name not in _DEFAULTS and name not in _NO_EFFECT}
    if given is not None and not isinstance(given, Mapping):
        foreign |= {name for name in asked if name not in _DEFAULTS and name not in _NO_EFFECT}
    if isinstance(own.get("pad_token_id"), int) and own["pad_token_id"] < 0:
        del own["pad_token_id"]  # as some files say that there is none
    values = {name: (value, "generation config") for name, value in (own | asked).items()}
    if given is not None and asked.get("temperature") == 0:
        values["do_sample"] = False, "generation config"
    values |= {name: (value, "argument of generate") for name, value in _with_constraint(overrides).items()}
    chosen = {name: value for name, (value, _) in values.items() if name in _DEFAULTS and value is not None}
    settings = GenerationSettings(**chosen)
    for name, (value, origin) in values.items():
        if name not in _DEFAULTS and name not in foreign and not _changes_nothing(name, value, settings.do_sample):
            supported = ", ".join(["do_sample", *sorted(set(_DEFAULTS) - {"do_sample"})])
            raise ValueError(f"{origin} {name}={value!r:.80} is not supported. Supported: {supported}")
    if vocabulary is not None:
        settings.check_vocabulary(vocabulary)
    unused = [] if settings.do_sample else [name for name in SAMPLING_ONLY if overrides.get(name)]
    if unused and warn:
        logger.warning("%s has no effect without do_sample=True", ", ".join(unused))
    return settings


def _with_constraint(settings: Mapping) -> dict:
    """The settings, json_schema, regex, choice and grammar among them as a constraint."""
    forms = {kind: settings[kind] for kind in KINDS if settings.get(kind) is not None}
    if settings.get("constraint") is not None:
        forms["constraint"] = settings["constraint"]
    if len(forms) > 1:
        raise SettingError(lambda say: f"{' and '.join(map(say, forms))} were given together: give one of them")
    rest = {name: value for name, value in settings.items() if name not in KINDS}
    return rest if not forms or "constraint" in forms else rest | {"constraint": forms}


def stored(what: str, config: Any) -> dict:
    """What a config sets: of an object what differs from Hugging Face's defaults, such as its max_length of 20."""
    if config is None:
        return {}
    if not isinstance(config, Mapping) and not hasattr(config, "to_diff_dict"):
        raise ValueError(f"{what} must be a GenerationConfig or a dict, not {config!r:.80}")
    stored = config if isinstance(config, Mapping) else _without_tables(config).to_diff_dict()
    return {name: value for name, value in stored.items() if value is not None}


def _without_tables(config: Any) -> Any:
    """A shallow copy without what families keep there beside settings: `to_diff_dict` copies all values, of which
    SeamlessM4T has a text for each token."""
    found = copy.copy(config)
    for name, value in vars(config).items():
        if isinstance(value, Mapping) and name not in _DEFAULTS and name not in _NO_EFFECT:
            delattr(found, name)
    return found


def _changes_nothing(name: str, value: Any, do_sample: bool) -> bool:
    if value is None:
        return True
    if not do_sample and name in _SAMPLING_CUTS:
        return _is_number(value) and 0 <= value <= 1
    harmless = _NO_EFFECT.get(name, ())
    return harmless is _ANY or (isinstance(value, numbers.Real) and value in harmless)
