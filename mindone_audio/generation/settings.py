"""What one call of `generate` was asked for: the checkpoint's generation_config.json with the caller's changes."""

import dataclasses
import logging
import numbers
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Fields of Hugging Face's GenerationConfig that change nothing here at these values (None: at any value).
_NO_EFFECT = {
    "transformers_version": None,
    "bos_token_id": None,
    "_from_model_config": None,
    "use_cache": True,
    "num_beam_groups": 1,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict_in_generate": False,
    "cache_implementation": "static",
}
_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "seed")


@dataclass(frozen=True)
class GenerationSettings:
    """Names, meanings and defaults are those of transformers' `GenerationConfig`; `seed` makes sampling repeatable.

    max_length counts the prompt, max_new_tokens (which wins where both are given) does not; with neither, 20 new ones.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    stop_strings: str | list[str] | None = None

    def __post_init__(self):
        for name, low, high in (
            ("max_new_tokens", 1, None),
            ("max_length", 1, None),
            ("min_new_tokens", 0, None),
            ("min_length", 0, None),
            ("top_k", 0, None),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("num_return_sequences", 1, None),
            ("num_beams", 1, None),
            ("seed", 0, None),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= low and (high is None or value <= high)):
                limits = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} must be {limits}, not {value!r}")
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 0):
                raise ValueError(f"{name} must be greater than 0, not {value!r}" + _ZERO_HINT.get(name, ""))
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', not {self.early_stopping!r}")
        if self.num_beams > 1 and self.do_sample:
            raise ValueError("num_beams > 1 with do_sample=True is not supported: choose beams or sampling")
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
        return [
            int(i) for i in (self.eos_token_id if isinstance(self.eos_token_id, list | tuple) else [self.eos_token_id])
        ]

    @property
    def padding(self) -> int:
        """What fills a sequence after its end: pad_token_id, else the first end token, else 0."""
        return int(self.pad_token_id if self.pad_token_id is not None else (self.eos_token_ids or [0])[0])

    @property
    def stops(self) -> list[str]:
        """Every string that ends a sequence."""
        return [self.stop_strings] if isinstance(self.stop_strings, str) else list(self.stop_strings or [])

    def resolve_length(self, prompt: int, max_positions: int) -> "GenerationSettings":
        """Settle max_new_tokens and min_new_tokens for a prompt of so many tokens in a model of so many positions."""
        if prompt > max_positions:
            raise ValueError(
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


_ZERO_HINT = {"temperature": "; for the most likely token each time use do_sample=False"}
_FIELDS = {field.name for field in dataclasses.fields(GenerationSettings)}


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def settle(base, overrides: dict) -> GenerationSettings:
    """Settings of `base` (a GenerationConfig or a dict; None for the defaults) changed by `overrides`.

    Raises `ValueError` for a name that is not supported at the value given: nothing is silently ignored.
    """
    values = {}
    for source, origin in ((_stored(base), "generation config"), (overrides, "argument of generate")):
        for name, value in source.items():
            if name in _FIELDS:
                if value is not None or origin != "generation config":
                    values[name] = value
            elif value is not None and not _has_no_effect(name, value):
                raise ValueError(
                    f"{origin} {name}={value!r} is not supported. Supported: {', '.join(sorted(_FIELDS))}"
                    + ("; the key-value cache is always used" if name == "use_cache" else "")
                )
    defaults = GenerationSettings()
    values = {name: getattr(defaults, name) if value is None else value for name, value in values.items()}
    settings = GenerationSettings(**values)
    unused = [name for name in _SAMPLING_ONLY if overrides.get(name) is not None and not settings.do_sample]
    if unused:
        logger.warning("%s has no effect without do_sample=True", ", ".join(unused))
    return settings


def _stored(config) -> dict:
    """Only what differs from Hugging Face's defaults, so that its max_length of 20 does not count as a request."""
    if config is None:
        return {}
    return dict(config) if isinstance(config, dict) else config.to_diff_dict()


def _has_no_effect(name: str, value) -> bool:
    return name in _NO_EFFECT and _NO_EFFECT[name] in (None, value)
