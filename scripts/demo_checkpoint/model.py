"""The demo checkpoint's model: its configuration, its first weights, and the losses that it learns from."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2TokenizerFast,
)

from demo_checkpoint.batches import CTC_SYMBOLS, KINDS, MAX_NUMBER, SEXES, Batch, num_audio_tokens
from demo_checkpoint.prompts import AUDIO, END_OF_TEXT, IM_END
from demo_checkpoint.sounds import MAX_BEEPS

POSITION_SCALE = 0.3  # of the encoder's sinusoids
ANSWERS_BUCKET = 128  # answer tokens are rounded up to this, see `batches`
LOSS_WEIGHTS = {"lm": 1.0, "frame": 1.0, "number": 1.0, "ctc": 1.0, "kind": 0.3, "count": 0.3, "sex": 0.3}


def make_config(tokenizer: Qwen2TokenizerFast) -> Qwen2AudioConfig:
    """About 4.5 million parameters: a Whisper-like encoder of 4 layers and a Qwen2 text model of 3."""
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=80,
        d_model=192,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=768,
        max_source_positions=500,
    )
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        bos_token_id=end_of_text,
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END),
        pad_token_id=end_of_text,
    )
    return Qwen2AudioConfig(
        audio_config=audio.to_dict(),
        text_config=text.to_dict(),
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO),
        tie_word_embeddings=False,
    )


def make_generation_config(tokenizer: Qwen2TokenizerFast) -> GenerationConfig:
    """Greedy decoding that stops at the end of a chat turn or of a text."""
    end_of_text, im_end = (tokenizer.convert_tokens_to_ids(t) for t in (END_OF_TEXT, IM_END))
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=end_of_text,
        pad_token_id=end_of_text,
        eos_token_id=[im_end, end_of_text],
    )


def make_model(config: Qwen2AudioConfig) -> Qwen2AudioForConditionalGeneration:
    """A fresh model: transformers ships no initialisation for training this family from scratch."""
    model = Qwen2AudioForConditionalGeneration(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            # Gains that let the sound, not its position, dominate the sum of the two.
            fan_in = module.in_channels * module.kernel_size[0]
            nn.init.normal_(module.weight, std=1.6 * fan_in**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            std = 0.8 * module.in_features**-0.5
            if name.endswith(("out_proj", "fc2", "o_proj", "down_proj")):
                std *= 0.4  # writes into the residual stream, several times over
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.05)
    width, positions = config.audio_config.d_model, config.audio_config.max_source_positions
    rates = torch.exp(-np.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * rates
    table = POSITION_SCALE * torch.cat([angles.sin(), angles.cos()], 1)
    # Rounded to bfloat16, the type on disk, so that the exported model sees the same positions.
    model.audio_tower.embed_positions.weight.data.copy_(table.bfloat16())
    return model


class AuxiliaryHeads(nn.Module):
    """Heads on the encoder that exist in training only: what is in the clip, and word-level CTC."""

    def __init__(self, width: int):
        super().__init__()
        self.ctc = nn.Linear(width, len(CTC_SYMBOLS))
        self.frame = nn.Linear(width, len(CTC_SYMBOLS))
        self.attention = nn.Linear(width, 1)
        self.kind = nn.Linear(2 * width, len(KINDS))
        self.count = nn.Linear(2 * width, MAX_BEEPS + 1)
        self.sex = nn.Linear(2 * width, len(SEXES))
        self.number = nn.Linear(width, MAX_NUMBER + 1)

    def pool(self, states: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, 2 * width): mean and learnt weighted mean over the valid positions."""
        weights = self.attention(states).squeeze(-1).float().masked_fill(~valid, -1e4).softmax(-1)
        mean = valid.float() / valid.sum(-1, keepdim=True)
        return torch.cat([(w[..., None] * states).sum(1) for w in (weights, mean)], -1)


def encode_audio(model: Qwen2AudioForConditionalGeneration, mel: torch.Tensor, num_frames: torch.Tensor):
    """The audio tower on a window shorter than 10 s. Equal to its forward for the valid positions.

    Returns the states (B, F // 4, width) and the mask (B, F // 4) of those that are valid.
    """
    tower = model.audio_tower
    hidden = F.gelu(tower.conv2(F.gelu(tower.conv1(mel)))).transpose(1, 2)  # (B, F // 2, width)
    length = hidden.shape[1]
    hidden = hidden + tower.embed_positions.weight[:length]
    valid = torch.arange(length) < ((num_frames - 1) // 2 + 1)[:, None]
    mask = valid[:, None, None, :].expand(-1, 1, length, -1)
    for layer in tower.layers:
        hidden = layer(hidden, mask, None)[0]
    states = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    return states, torch.arange(states.shape[1]) < num_audio_tokens(num_frames)[:, None]


def packed_mask(segments: torch.Tensor) -> torch.Tensor:
    """(B, S) segment numbers -> (B, 1, S, S) mask, true where the row's token may look at the column's."""
    rows, columns = segments[:, :, None], segments[:, None, :]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (causal & ((columns == 0) | (rows == columns)))[:, None]


def answer_logits(model: Qwen2AudioForConditionalGeneration, batch: Batch, states, valid):
    """Logits (N, vocabulary) and targets (N,) of all answer tokens, and their (row, column) index.

    N is rounded up; the targets of the rows that fill it are -100.
    """
    embeds = model.get_input_embeddings()(batch.input_ids)
    audio = model.multi_modal_projector(states)
    placeholder = batch.input_ids == model.config.audio_token_index
    embeds = embeds.masked_scatter(placeholder[..., None], audio[valid].to(embeds.dtype))
    hidden = model.language_model.model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": packed_mask(batch.segments)},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    is_answer = batch.labels[:, 1:] != -100
    fill = -int(is_answer.sum()) % ANSWERS_BUCKET
    rows, columns = (F.pad(index, (0, fill)) for index in is_answer.nonzero(as_tuple=True))
    targets = batch.labels[rows, columns + 1]
    if fill:
        targets[-fill:] = -100
    return model.language_model.lm_head(hidden[rows, columns]), targets, (rows, columns)


def losses(model: Qwen2AudioForConditionalGeneration, heads: AuxiliaryHeads, batch: Batch) -> dict[str, torch.Tensor]:
    """The language-model loss and the auxiliary ones, by name."""
    states, valid = encode_audio(model, batch.mel, batch.num_frames)
    pooled = heads.pool(states, valid)
    ctc = heads.ctc(states).float().log_softmax(-1).transpose(0, 1)
    lengths = torch.tensor([len(t) for t in batch.ctc_targets])
    flat = torch.tensor([symbol for target in batch.ctc_targets for symbol in target], dtype=torch.long)
    steps = num_audio_tokens(batch.num_frames)
    ctc_loss = F.ctc_loss(ctc, flat, steps, lengths, reduction="none", zero_infinity=True)
    decoder = {}
    if not batch.encoder_only:
        logits, targets, _ = answer_logits(model, batch, states, valid)
        decoder["lm"] = F.cross_entropy(logits.float(), targets)
    symbols, numbers = batch.frame_targets.unbind(1)
    return decoder | {
        "frame": F.cross_entropy(heads.frame(states).float().flatten(0, 1), symbols.flatten()),
        "number": F.cross_entropy(heads.number(states).float().flatten(0, 1), numbers.flatten()),
        "ctc": (ctc_loss / torch.where(lengths > 0, lengths, steps)).mean(),
        "kind": F.cross_entropy(heads.kind(pooled).float(), batch.kinds),
        "count": F.cross_entropy(heads.count(pooled).float(), batch.counts),
        "sex": F.cross_entropy(heads.sex(pooled).float(), batch.sexes, ignore_index=-100),
    }
