"""Whisper (arXiv 2212.04356): speech in many languages to text, in its language or in English, with times."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from mindspore import Tensor
from transformers import WhisperConfig

from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.config_fields import refuse_fields
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.encoder_decoder_model import EncoderDecoderModel
from mindone_audio.backbone.published_config import encoder_config
from mindone_audio.backbone.text_decoder import TextDecoder, TextDecoderConfig
from mindone_audio.generation.engine import Engine
from mindone_audio.generation.generate import EngineMixin
from mindone_audio.generation.settings import flag, real, settle
from mindone_audio.models.whisper.alignment import warm_up
from mindone_audio.models.whisper.processor import WhisperProcessor
from mindone_audio.models.whisper.timestamps import Segment
from mindone_audio.models.whisper.tokens import SpecialTokens
from mindone_audio.models.whisper.transcription import Manner, Transcription, transcribe
from mindone_audio.setting_fields import SettingError, refusal

CHECKPOINTS = ("openai/whisper-large-v3", "openai/whisper-large-v3-turbo", "openai/whisper-tiny.en")
PROVED = "float32 on CPU against transformers 4.57 (PyTorch): small random models and the published weights of tiny.en"
_THRESHOLDS = ("compression_ratio_threshold", "logprob_threshold", "no_speech_threshold")
_CONDITIONS = ("first-segment", "all-segments")


class WhisperForConditionalGeneration(EncoderDecoderModel, EngineMixin):
    """Whisper on MindSpore: `from_pretrained`, `construct` (logits and loss) and `generate`."""

    config_class = WhisperConfig
    weight_prefixes = (
        ("model.encoder.", "audio_tower."),
        ("model.decoder.", "language_model.model."),
        ("proj_out.", "language_model.lm_head."),
    )

    def __init__(self, config: WhisperConfig):
        refuse_fields(config, "config.json")
        encoder = encoder_config(config, pool_pairs=False, mask_padding=False)
        decoder = TextDecoderConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.decoder_ffn_dim,
            num_layers=config.decoder_layers,
            num_heads=config.decoder_attention_heads,
            max_positions=config.max_target_positions,
            activation=config.activation_function,
            tie_word_embeddings=config.tie_word_embeddings,
        )
        super().__init__(config, AudioEncoder(encoder), TextDecoder(decoder))

    def generate(
        self,
        input_features,
        attention_mask=None,
        *,
        language: str | Sequence[str] | None = None,
        task: str | None = None,
        return_timestamps: bool | None = None,
        return_token_timestamps: bool = False,
        return_segments: bool = False,
        generation_config=None,
        compile: bool = True,
        batch_size: int = 8,
        **settings,
    ) -> Tensor | dict[str, Any]:
        """Write down what is said: int32 (batch, length), new tokens only, without the end token, padded on the right.

        input_features (batch, mel bins, frames): of 3000 frames, which are 30 s, or of more, together with an
        attention_mask (batch, frames) where clips are of unequal length. language: "en", "english" or "<|en|>", or one
        for each clip; without it the model detects it for each. task: "transcribe" or "translate" (to English).
        return_timestamps: the tokens tell times; always so for more than 30 s. return_segments: return a dict with
        "sequences" and "segments", for each clip dicts with "start" and "end" in seconds and "tokens".
        return_token_timestamps: return a dict with "sequences" and "token_timestamps" fp32 (batch, length), the second
        at which each token begins; segments have them too. Frames that attention_mask leaves out are not looked at for
        them.

        settings: prompt_ids, prompt_condition_type, condition_on_prev_tokens, temperature (a number, or several to try
        one after the other), compression_ratio_threshold, logprob_threshold, no_speech_threshold as in transformers,
        and the fields of `GenerationSettings`. Up to `batch_size` clips are worked on side by side; the others wait.
        compile=False interprets the same code. Raises `ValueError` for what does not fit together or cannot be.

        Without timestamps a clip is one window, whatever the model says in it; transformers goes on with another
        window where the model tells times without being asked.
        """
        settings["return_token_timestamps"] = return_token_timestamps
        clips = self.transcriptions(
            input_features, attention_mask, language, task, return_timestamps, generation_config, **settings
        )
        for clip in transcribe(self.engine(compile), clips, batch_size):
            if clip.error is not None:
                raise clip.error
        said = [sum((segment.tokens for segment in clip.segments), []) for clip in clips]
        padding = clips[0].manner.settings.padding
        sequences = np.full((len(said), max(map(len, said))), padding, np.int32)
        for row, tokens in zip(sequences, said):
            row[: len(tokens)] = tokens
        if not return_segments and not return_token_timestamps:
            return Tensor(sequences)
        found = {"sequences": Tensor(sequences)}
        if return_token_timestamps:
            times = np.zeros(sequences.shape, np.float32)
            for row, clip in zip(times, clips):
                own = sum((segment.times for segment in clip.segments), [])
                row[: len(own)], row[len(own) :] = own, own[-1] if own else 0
            found["token_timestamps"] = Tensor(times)
        if return_segments:
            found["segments"] = [list(map(_as_dict, clip.segments)) for clip in clips]
        return found

    def transcriptions(
        self,
        input_features,
        attention_mask=None,
        language: str | Sequence[str] | None = None,
        task: str | None = None,
        return_timestamps: bool | None = None,
        generation_config=None,
        **settings,
    ) -> list[Transcription]:
        """What `generate` is asked, checked: a `Transcription` for each clip. Arguments and errors are its."""
        features, frames, heard = self._features(input_features, attention_mask)
        tokens = self.special_tokens
        window = self.audio_tower.config.num_mel_frames
        if return_timestamps is None:
            return_timestamps = getattr(self.generation_config, "return_timestamps", None) or False
            return_timestamps = return_timestamps or features.shape[2] > window
        elif not flag("return_timestamps", return_timestamps) and features.shape[2] > window:
            raise ValueError(
                f"return_timestamps=False, but the clips have up to {features.shape[2]} frames: more than {window} are "
                "cut into windows, which takes timestamps"
            )
        tokens.check(language, task, return_timestamps)
        manner = self._manner(return_timestamps, generation_config, settings)
        named = language is not None
        languages = [language] * len(features) if language is None or isinstance(language, str) else list(language)
        if len(languages) != len(features):
            raise ValueError(f"{len(languages)} languages for {len(features)} clips: give one, or one for each")
        detects = tokens.detects(language, task)
        found = []
        for log_mel, count, spoken, name in zip(features, frames, heard, languages):
            make = partial(tokens.prompt, task=task, timestamps=return_timestamps, given=named)
            prompt = None if detects else make(tokens.language(name) if named else None)
            sizes = window, self.language_model.config.max_positions, self.language_model.config.vocab_size
            found.append(Transcription(log_mel, int(count), manner, tokens, *sizes, prompt, make, spoken))
            if prompt is not None:
                found[-1].request()  # so that what cannot be is refused before anything is computed
        return found

    def start_tokens(self, language: str | None = None, task: str | None = None) -> list[int]:
        """The tokens that an answer begins with, where it tells no times; a task is "transcribe" unless it is named.

        Raises `ValueError` for a language or a task that the model has not, and where it has several languages and none
        is named.
        """
        tokens = self.special_tokens
        language, task = (
            None if tokens.needless(name, value) else value for name, value in (("language", language), ("task", task))
        )
        tokens.check(language, task, False)
        if tokens.detects(language, task):
            raise SettingError(
                lambda say: f"this model has several languages: say which one is spoken with {say('language')}"
            )
        named = language is not None
        return tokens.prompt(tokens.language(language) if named else None, task, False, named)

    def warm_up_more(self, engine: Engine) -> None:
        """Compile what the times of words need, where the checkpoint tells them."""
        if heads := getattr(self.generation_config, "alignment_heads", None):
            warm_up(engine, heads)

    @property
    def special_tokens(self) -> SpecialTokens:
        """What generation_config.json says of them."""
        return SpecialTokens.of(self.generation_config, self.config)

    def _features(self, input_features, attention_mask) -> tuple[np.ndarray, np.ndarray, list[int | None]]:
        """Features (batch, mel bins, frames), how many frames of each are gone through, and how many are audio."""
        features, mask = to_numpy(input_features), to_numpy(attention_mask)
        config = self.audio_tower.config
        window = config.num_mel_frames
        if features is None or features.ndim != 3 or features.shape[1] != config.num_mel_bins or not len(features):
            raise ValueError(
                f"input_features have shape {np.shape(features)}, this model takes (clips, {config.num_mel_bins}, "
                f"{window} or more frames): use the checkpoint's own processor"
            )
        frames = np.full(len(features), features.shape[2])
        if features.shape[2] < window:
            raise ValueError(
                f"input_features have {features.shape[2]} frames, and a window of this model has {window}: use the "
                "checkpoint's own processor, which pads each clip to it"
            )
        if features.shape[2] > window and len(features) > 1:
            if mask is None or mask.shape != (len(features), features.shape[2]):
                raise ValueError(
                    f"{len(features)} clips of up to {features.shape[2]} frames need their attention_mask (clips, "
                    "frames): processor(..., return_attention_mask=True)"
                )
            frames = (mask != 0).sum(1)
        heard = [None] * len(features) if mask is None else (mask != 0).sum(1).tolist()
        return features.astype(np.float32), frames, heard

    def _manner(self, timestamps: bool, generation_config, settings: dict) -> Manner:
        own = {
            name: settings.pop(name, getattr(self.generation_config, name, None))
            for name in (*_THRESHOLDS, "condition_on_prev_tokens", "prompt_condition_type")
        }
        heads = getattr(self.generation_config, "alignment_heads", None)
        if not flag("return_token_timestamps", settings.pop("return_token_timestamps", False)):
            heads = None
        elif not heads:
            raise ValueError(
                "the times of tokens need alignment_heads in generation_config.json: take the checkpoint's newest "
                "version"
            )
        prompt = self._prompt_ids(settings.pop("prompt_ids", None))
        temperatures = settings.pop("temperature", None)
        temperatures = [0.0] if temperatures is None else np.atleast_1d(temperatures).tolist()
        temperatures = tuple(real("temperature", value, 0) for value in temperatures)
        if not temperatures:
            raise refusal("temperature", " is an empty list: give at least one number")
        vocabulary = self.language_model.config.vocab_size
        chosen = settle(self.generation_config, settings, generation_config, vocabulary=vocabulary)
        if settings.get("do_sample") and temperatures == (0.0,):
            temperatures = (chosen.temperature,)
        if chosen.num_return_sequences != 1:
            raise ValueError(f"num_return_sequences={chosen.num_return_sequences} is not supported: only 1")
        if chosen.stops or chosen.constraint is not None:
            name = "stop_strings" if chosen.stops else next(iter(chosen.constraint))
            raise refusal(name, ": a Whisper model writes down what is said, in no other form: leave it out")
        thresholds = {name: None if own[name] is None else real(name, own[name], -np.inf) for name in _THRESHOLDS}
        condition = own["prompt_condition_type"] or _CONDITIONS[0]
        if condition not in _CONDITIONS:
            raise ValueError(f"prompt_condition_type {condition!r} is unknown: it may be {' or '.join(_CONDITIONS)}")
        continues = flag("condition_on_prev_tokens", own["condition_on_prev_tokens"] or False)
        if condition == "all-segments" and not continues:
            raise ValueError('prompt_condition_type="all-segments" goes with condition_on_prev_tokens=True')
        return Manner(
            chosen,
            timestamps,
            temperatures,
            **thresholds,
            condition_on_prev_tokens=continues,
            prompt_ids=prompt,
            prompt_every_window=condition == "all-segments",
            heads=None if heads is None else tuple(map(tuple, heads)),
        )

    def _prompt_ids(self, given: Any) -> tuple[int, ...]:
        """Token ids as they may be given, in a list, an array or a tensor; `ValueError` for what is none."""
        if given is None:
            return ()
        ids, vocabulary = np.asarray(to_numpy(given)), self.language_model.config.vocab_size
        if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= vocabulary):
            raise refusal("prompt_ids", f" must be token ids from 0 to {vocabulary - 1}, not {given!r:.80}")
        return tuple(ids.reshape(-1).tolist())


def _as_dict(segment: Segment) -> dict[str, Any]:
    found = {"start": segment.start, "end": segment.end, "tokens": np.array(segment.tokens, np.int32)}
    return found if segment.times is None else found | {"token_timestamps": np.array(segment.times)}


MODEL, PROCESSOR = WhisperForConditionalGeneration, WhisperProcessor
