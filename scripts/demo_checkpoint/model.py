"""The demo checkpoint's model: Whisper tiny.en's encoder under a small Qwen2 decoder, and the losses it learns from."""

from pathlib import Path

import torch
from safetensors.torch import load_file
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

from demo_checkpoint.batches import TEXT_ALONE, Batch, num_audio_tokens
from demo_checkpoint.prompts import AUDIO, END_OF_TEXT, IM_END

CTC_LAYERS = 2  # layers of the decoder below the helper of CTC
LOSS_WEIGHTS = {"lm": 1.0, "ctc": 0.3, "text": 0.3}
ENCODER_PREFIX = "model.encoder."  # of Whisper's encoder, in its own file


def make_config(tokenizer: Qwen2TokenizerFast) -> Qwen2AudioConfig:
    """Whisper tiny.en's encoder (8.2 million parameters) and a Qwen2 text model of 5 layers (4 million)."""
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    audio = Qwen2AudioEncoderConfig(
        num_mel_bins=80,
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        max_source_positions=1500,
    )
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
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
        max_new_tokens=128,
        bos_token_id=end_of_text,
        pad_token_id=end_of_text,
        eos_token_id=[im_end, end_of_text],
    )


def make_model(config: Qwen2AudioConfig, whisper: Path | None = None) -> Qwen2AudioForConditionalGeneration:
    """A fresh decoder above Whisper's encoder, frozen, from the folder `whisper` in transformers' layout.

    Qwen2-Audio's encoder is Whisper's with each pair of states averaged before the last LayerNorm, so that the weights
    have the same names and shapes. Without a folder the encoder is random, to be loaded from a snapshot.
    """
    model = Qwen2AudioForConditionalGeneration(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("audio_tower"):
            std = 0.8 * module.in_features**-0.5
            if name.endswith(("o_proj", "down_proj")):
                std *= 0.4  # writes into the residual stream, several times over
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.05)
    if whisper:
        weights = load_file(whisper / "model.safetensors")
        encoder = {
            name.removeprefix(ENCODER_PREFIX): w for name, w in weights.items() if name.startswith(ENCODER_PREFIX)
        }
        # Rounded to bfloat16, the type on disk, so that the decoder learns from what the exported encoder says.
        model.audio_tower.load_state_dict({name: w.bfloat16().float() for name, w in encoder.items()})
    model.audio_tower.requires_grad_(False)
    return model


class CtcHelper(nn.Module):
    """A head that exists in training only: which token, or beep, the decoder's lower layers hear at each position.

    Attention has little to go by until something says where in the clip a word is; connectionist temporal
    classification (Graves et al., 2006) teaches that without being told the places.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.blank, self.beep = vocabulary, vocabulary + 1
        self.symbols = nn.Linear(width, vocabulary + 2)

    def loss(self, states: torch.Tensor, steps: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
        """states (B, T, width) of which the first `steps` (B,) are valid; the loss a symbol, or a step without any."""
        scores = self.symbols(states).float().log_softmax(-1).transpose(0, 1)
        lengths = torch.tensor([len(t) for t in targets])
        flat = torch.tensor([symbol for target in targets for symbol in target], dtype=torch.long)
        losses = F.ctc_loss(scores, flat, steps, lengths, blank=self.blank, reduction="none", zero_infinity=True)
        return (losses / torch.where(lengths > 0, lengths, steps)).mean()


def encode_audio(model: Qwen2AudioForConditionalGeneration, mel: torch.Tensor, num_frames: torch.Tensor):
    """The audio tower on a window shorter than 30 s. Equal to its forward for the valid positions.

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
    prefix = (columns == 0) & (rows < TEXT_ALONE)
    return (causal & (prefix | (rows == columns)))[:, None]


def decode(model: Qwen2AudioForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder on a packed batch: its last hidden states (B, S, width), and those above its first CTC_LAYERS."""
    embeds = model.get_input_embeddings()(batch.input_ids)
    audio = model.multi_modal_projector(batch.states)
    placeholder = batch.input_ids == model.config.audio_token_index
    valid = torch.arange(audio.shape[1]) < batch.steps[:, None]
    embeds = embeds.masked_scatter(placeholder[..., None], audio[valid].to(embeds.dtype))
    output = model.language_model.model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": packed_mask(batch.segments)},
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    return output.last_hidden_state, output.hidden_states[CTC_LAYERS]


def answer_logits(model: Qwen2AudioForConditionalGeneration, batch: Batch, hidden: torch.Tensor):
    """Logits (N, vocabulary) and targets (N,) of all answer tokens, and their (row, column) index."""
    rows, columns = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
    return model.language_model.lm_head(hidden[rows, columns]), batch.labels[rows, columns + 1], (rows, columns)


def losses(model: Qwen2AudioForConditionalGeneration, helper: CtcHelper, batch: Batch) -> dict[str, torch.Tensor]:
    """The language-model loss and the helper's, by name."""
    hidden, lower = decode(model, batch)
    logits, targets, (rows, columns) = answer_logits(model, batch, hidden)
    alone = batch.segments[rows, columns + 1] >= TEXT_ALONE
    placeholder = batch.input_ids == model.config.audio_token_index
    heard = torch.zeros_like(lower[:, : batch.states.shape[1]])
    heard = heard.masked_scatter((torch.arange(heard.shape[1]) < batch.steps[:, None])[..., None], lower[placeholder])
    parts = {
        "lm": F.cross_entropy(logits[~alone].float(), targets[~alone]),
        "ctc": helper.loss(heard, batch.steps, batch.ctc_targets),
    }
    return parts | ({"text": F.cross_entropy(logits[alone].float(), targets[alone])} if alone.any() else {})
