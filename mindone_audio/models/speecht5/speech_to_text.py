"""`SpeechT5ForSpeechToText`: what is said in clips, by its raw samples."""

import os

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from transformers import SpeechT5Config

from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.backbone.encoder_decoder_model import EncoderDecoderModel
from mindone_audio.backbone.layers import parameter
from mindone_audio.backbone.pretrained_model import Seq2SeqLMOutput
from mindone_audio.backbone.text_decoder import TextDecoder
from mindone_audio.generation.generate import EngineMixin, end_test, generated
from mindone_audio.generation.matcher import compile_constraint
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.settings import settle
from mindone_audio.models.speecht5.sizes import DECODER_PREFIXES, check_config, decoder_config, stack_config
from mindone_audio.models.speecht5.wave_encoder import WaveConfig, WaveEncoder
from mindone_audio.weights.weight_norm import factored

_LONGEST = 1500  # frames of the longest clip, which are 30 s of the published checkpoints
_NORMED = "audio_tower.prenet.pos_conv_embed.conv"


class SpeechT5ForSpeechToText(EncoderDecoderModel, EngineMixin):
    """SpeechT5 that writes: `from_pretrained`, `construct` (logits and loss) and `generate`."""

    config_class = SpeechT5Config
    main_input_name = "input_values"
    audio_inputs = ("input_values", "attention_mask")
    weight_prefixes = (
        ("speecht5.encoder.", "audio_tower."),
        ("speecht5.decoder.prenet.embed_tokens.", "language_model.model.embed_tokens."),
        *DECODER_PREFIXES,
        ("text_decoder_postnet.lm_head.", "language_model.lm_head."),
    )

    def __init__(self, config: SpeechT5Config):
        check_config(config, feat_extract_norm="group", feat_extract_activation="gelu", tie_word_embeddings=True)
        waves = WaveConfig(
            stack=stack_config(config),
            longest=0,
            conv_dim=tuple(config.conv_dim),
            conv_kernel=tuple(config.conv_kernel),
            conv_stride=tuple(config.conv_stride),
            conv_bias=config.conv_bias,
            positions_kernel=config.num_conv_pos_embeddings,
            positions_groups=config.num_conv_pos_embedding_groups,
        )
        waves = waves.up_to(min(_LONGEST, config.max_speech_positions))
        decoder = TextDecoder(decoder_config(config, config.vocab_size, config.max_text_positions))
        super().__init__(config, WaveEncoder(waves), decoder)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:  # for training, but checkpoints have it
            self.audio_tower.prenet.masked_spec_embed = parameter((config.hidden_size,), trainable=False)

    @property
    def audio_dtype(self) -> ms.Type:
        """That of the encoder's weights."""
        return self.audio_tower.prenet.feature_projection.projection.weight.dtype

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process=True, state_dict=None, **kwargs
    ) -> None:
        """As for other models; one weight is stored as length and direction, since transformers reads no other form."""
        state = dict(self.parameters_and_names()) if state_dict is None else dict(state_dict)
        length, direction = factored(to_numpy(state.pop(f"{_NORMED}.weight")), 2)
        for end, value in (("original0", length), ("original1", direction)):
            name = f"{_NORMED}.parametrizations.weight.{end}"
            state[name] = Parameter(Tensor(value).astype(self.audio_dtype), name=name)
        super().save_pretrained(save_directory, is_main_process, state, **kwargs)

    def heard(self, lengths: np.ndarray) -> np.ndarray:
        """How many positions the decoder attends to of clips of so many samples, int32 (clips)."""
        return self.audio_tokens(lengths).astype(np.int32)

    def clips(self, audio: dict) -> tuple[np.ndarray | None, np.ndarray]:
        """Samples fp32 (clips, samples), as many as the graph for the longest one takes, and int32 lengths (clips).

        Raises `ValueError` for other shapes, and clips that are too short or too long.
        """
        samples, mask = (to_numpy(audio.get(name)) for name in self.audio_inputs)
        if samples is None:
            return None, np.zeros(0, np.int32)
        if samples.ndim != 2 or not len(samples):
            raise ValueError(f"input_values have shape {samples.shape}: (clips, samples), as the processor makes them")
        mask = np.ones(samples.shape, bool) if mask is None else mask != 0
        if mask.shape != samples.shape or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                f"attention_mask of shape {mask.shape} must be that of input_values, {samples.shape}, and 1 before it "
                "is 0: clips are padded on the right"
            )
        lengths, sizes = mask.sum(1).astype(np.int32), self.audio_tower.config
        for place, length in enumerate(lengths.tolist()):
            if not sizes.samples(1) <= length <= sizes.num_mel_frames:
                raise ValueError(
                    f"clip {place} has {length} samples, this model takes {sizes.samples(1)} to {sizes.num_mel_frames}:"
                    " cut a longer one, leave out a shorter one"
                )
        width = sizes.frames_to_encode(int(lengths.max()))
        found = np.where(mask, samples, 0)[:, :width].astype(np.float32)
        return np.pad(found, ((0, 0), (0, width - found.shape[1]))), lengths

    def blank(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """A clip without a sound, as `clips` gives it, for which the encoder's graph of so many samples is taken."""
        return np.zeros((1, width), np.float32), np.array([width], np.int32)

    def construct(
        self, input_values, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, labels=None
    ) -> Seq2SeqLMOutput:
        """Scores of every next token, and the loss where labels are given: arguments as for `EncoderDecoderModel`, but
        that input_values (batch, samples) are what the processor makes of the clips."""
        return super().construct(input_values, attention_mask, decoder_input_ids, decoder_attention_mask, labels)

    def generate(
        self,
        input_values,
        attention_mask=None,
        *,
        generation_config=None,
        compile: bool = True,
        batch_size: int = 8,
        **settings,
    ) -> Tensor:
        """Write down what is said: int32 (batch, length), the start token first.

        input_values (batch, samples), of which those are audio where attention_mask is 1. settings: the fields of
        `GenerationSettings`. Up to `batch_size` clips are worked on side by side; the others wait. compile=False
        interprets the same code. Sequences that end early are filled with the
        padding token. Raises `ValueError` for what does not fit together or is not supported.

        A batch gives what each clip gives alone; in transformers the convolutions hear the padding of shorter ones. A
        padding token that a model chooses has the position of its place; in transformers it has none.
        """
        requests = self.requests(input_values, attention_mask, generation_config=generation_config, **settings)
        said: dict[int, np.ndarray] = {}
        for row, tokens in generated(self.engine(compile), enumerate(requests), batch_size):
            if isinstance(tokens, Exception):
                raise tokens
            said[row] = np.append(requests[row].input_ids, tokens)
        sequences = np.full((len(said), max(map(len, said.values()))), requests[0].settings.padding, np.int32)
        for row, tokens in said.items():
            sequences[row, : len(tokens)] = tokens
        return Tensor(sequences)

    def requests(
        self, input_values, attention_mask=None, *, generation_config=None, tokenizer=None, **settings
    ) -> list[GenerationRequest]:
        """The clips of a batch, each checked and apart, as a `RunningBatch` takes them; nothing is computed.

        tokenizer: needed for stop_strings and for a constraint. The other arguments and the errors are those of
        `generate`.
        """
        sources = self.sources(input_values=input_values, attention_mask=attention_mask)
        sizes, start = self.language_model.config, self.config.decoder_start_token_id
        chosen = settle(self.generation_config, settings, generation_config, vocabulary=sizes.vocab_size)
        chosen = chosen.resolve_length(1, sizes.max_positions)
        if chosen.num_return_sequences != 1:
            raise ValueError(f"num_return_sequences={chosen.num_return_sequences} is not supported: only 1")
        ended, constraint = end_test(chosen, tokenizer), None
        if chosen.constraint is not None:
            ends, most = chosen.eos_token_ids, chosen.max_new_tokens
            constraint = compile_constraint(chosen.constraint, tokenizer, sizes.vocab_size, ends, most)
        prompt, nothing = np.array([start], np.int32), np.array([-1], np.int32)
        return [GenerationRequest(prompt, nothing, source, chosen, ended, constraint=constraint) for source in sources]
