"""The decoder-only body: encoder, projector and decoder put together, even for families whose audio is tokens."""

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.checkpoint_model import CheckpointModel, audio_frames, to_numpy
from mindone_audio.backbone.decoder import Decoder, causal_mask
from mindone_audio.backbone.encoder import AudioEncoder
from mindone_audio.backbone.pretrained_model import CausalLMOutput
from mindone_audio.backbone.prompt import Prompt, build_prompt

# What PEFT's wrapper for causal language models hands on, None unless its caller gave it.
_PEFT_KEYWORDS = ("inputs_embeds", "output_attentions", "output_hidden_states", "return_dict")


def audio_rows(audio: Tensor, audio_index: Tensor) -> Tensor:
    """Rows of audio (rows, n) by int32 audio_index (batch, length): (batch, length, n), anything where that is -1."""
    return ops.embed(audio, msops.maximum(audio_index, 0))


def merge_audio(text: Tensor, rows: Tensor, audio_index: Tensor) -> Tensor:
    """Token embeddings (batch, length, n), replaced by the `audio_rows` wherever audio_index (batch, length) >= 0."""
    return msops.where((audio_index >= 0).expand_dims(-1), rows.astype(text.dtype), text)


class AudioLanguageModel(CheckpointModel):
    """A decoder-only model: audio becomes rows of embeddings, or tokens, in front of its language model.

    A family describes its encoder, projector and decoder; one that hears only tokens has no encoder and no projector.
    """

    def __init__(
        self,
        config,
        audio_tower: AudioEncoder | None,
        projector: nn.Cell | None,
        language_model: Decoder,
        audio_token_id: int | None,
    ):
        super().__init__(config, audio_tower, projector, language_model)
        self.audio_token_id = audio_token_id

    def prompt(
        self, input_ids, attention_mask=None, labels=None, **audio
    ) -> tuple[Prompt, np.ndarray | None, np.ndarray]:
        """Check the inputs on the host: a `Prompt`, the features (or None) and int32 lengths in frames of the clips.

        `audio`: the arrays that `audio_inputs` names. Raises `TypeError` for one that it does not.
        """
        given = {name for name, value in audio.items() if value is not None or name not in _PEFT_KEYWORDS}
        if unknown := sorted(given - set(self.audio_inputs)):
            raise TypeError(
                f"{type(self).__name__} takes no {', '.join(unknown)}: it takes input_ids, attention_mask, "
                f"{', '.join(self.audio_inputs)}"
            )
        input_ids = to_numpy(input_ids)
        if input_ids is None or input_ids.ndim != 2 or not input_ids.size:
            shape = None if input_ids is None else input_ids.shape
            raise ValueError(f"input_ids must be (batch, length) with at least one token, not {shape}")
        attention_mask = to_numpy(attention_mask)
        mask = np.ones(input_ids.shape, bool) if attention_mask is None else attention_mask != 0
        if mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask has shape {mask.shape}, input_ids has {input_ids.shape}: make them equal")
        vocabulary = self.language_model.config.vocab_size
        if input_ids.min() < 0 or input_ids.max() >= vocabulary:  # a CPU takes them for zeros, an NPU for anything
            wrong = input_ids[(input_ids < 0) | (input_ids >= vocabulary)][0]
            raise ValueError(
                f"input_ids hold {wrong}, and this model has the tokens 0 to {vocabulary - 1}: use the "
                "checkpoint's own processor"
            )
        features, lengths = self.clips(audio)
        places = self.audio_places(input_ids, mask, audio)
        frames = audio_frames(lengths)
        tokens = self.audio_tokens(frames) if len(frames) else frames
        per_clip = 0 if features is None else int(self.audio_tokens(np.array(features.shape[2])))
        return build_prompt(input_ids, mask, places, tokens, per_clip, to_numpy(labels)), features, lengths

    def in_whole_windows(self, audio_index: np.ndarray, frames: int) -> np.ndarray:
        """The `Prompt.audio_index` of clips of so many frames, where their encoded rows are continued to those of a
        whole window."""
        whole = max(frames, self.audio_tower.config.num_mel_frames)
        rows, all_rows = (int(self.audio_tokens(np.array(count))) for count in (frames, whole))
        return np.where(audio_index < 0, -1, audio_index // rows * all_rows + audio_index % rows)

    def audio_places(self, input_ids: np.ndarray, mask: np.ndarray, audio: dict) -> np.ndarray:
        """Where the prompts have audio embeddings instead of text: bool (batch, length)."""
        return (input_ids == self.audio_token_id) & mask

    def construct(self, input_ids, attention_mask=None, labels=None, **audio) -> CausalLMOutput:
        """Scores of every next token, and the loss where labels are given.

        input_ids int (batch, length); attention_mask: nonzero for what counts, of any dtype; labels like input_ids,
        -100 where nothing is to be learned; `audio`: the arrays that `audio_inputs` names, features (clips, mel bins,
        frames) of the clips of all samples in the order of their placeholders, and their mask (clips, frames). NumPy
        arrays and MindSpore tensors are both taken.

        Returns logits fp32 (batch, length, vocab_size), where length is that of the expanded prompt if placeholders
        came singly, and the mean cross-entropy of each label given the tokens before it, padding left out.
        """
        prompt, features, lengths = self.prompt(input_ids, attention_mask, labels, **audio)
        tables = self.language_model.position_tables(prompt.input_ids.shape[1], self.dtype)
        audio = None if features is None else self.encode_audio(self.features_tensor(features), Tensor(lengths))
        tokens = Tensor(prompt.input_ids), Tensor(prompt.positions), Tensor(prompt.mask)
        hidden = self.hidden_states(*tokens, tables, audio, Tensor(prompt.audio_index))
        logits = self.language_model.logits(hidden)
        return CausalLMOutput(loss=None if prompt.labels is None else _loss(logits, prompt), logits=logits)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        tables: list[Tensor],
        audio: Tensor | None,
        audio_index: Tensor,
    ) -> Tensor:
        """What the decoder makes of whole prompts, before its output layer: (batch, length, hidden).

        input_ids, positions and audio_index int32, visible bool, (batch, length): those of a `Prompt`; tables:
        `Decoder.rotation_tables` of at least that length; audio (clips, tokens, hidden) or None: see `encode_audio`.
        """
        columns = ops.counting(input_ids.shape[1])
        mask = causal_mask(columns, visible)
        embeddings = self.embeddings(input_ids, audio, audio_index)
        modes = self.language_model.modes(audio_index, visible)
        rotation = self.language_model.positions_at(tables, positions, modes)
        return self.language_model(embeddings, rotation, mask, modes=modes)

    def embeddings(self, input_ids: Tensor, audio: Tensor | None, audio_index: Tensor) -> Tensor:
        """What the decoder's first layer takes, (batch, length, hidden); arguments as for `hidden_states`."""
        text = self.language_model.embed(input_ids)
        if audio is None:
            return text
        return merge_audio(text, audio_rows(audio.reshape((-1, audio.shape[-1])), audio_index), audio_index)


def _loss(logits: Tensor, prompt: Prompt) -> Tensor:
    """Mean cross-entropy of labels[1:] given logits[:-1], over unpadded places whose label is not -100."""
    labels = np.where(prompt.mask, prompt.labels, -100)[:, 1:].astype(np.int32).reshape(-1)
    return msops.cross_entropy(logits[:, :-1].reshape((-1, logits.shape[-1])), Tensor(labels), ignore_index=-100)
