"""A tiny Ichigo checkpoint folder: a byte-level tokenizer with sound tokens, a Llama and a WhisperVQ."""

import shutil
from pathlib import Path

import helpers
import helpers_whisper_vq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

START, END = "<|sound_start|>", "<|sound_end|>"
CODES = 41  # of the golden WhisperVQ
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
# What Llama 3's template does with plain messages.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def sounds(tokens) -> str:
    """A clip's tokens as Ichigo's own code writes them into a message."""
    return START + "".join(f"<|sound_{token:04d}|>" for token in tokens) + END


def llama_tokenizer(codes: int = CODES) -> PreTrainedTokenizerFast:
    """Ids 0 to 255 are bytes, then Llama's special tokens, then those of sound; it begins every text itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*LLAMA, START, END, *(f"<|sound_{code:04d}|>" for code in range(codes))])
    begin = LLAMA[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=LLAMA[1], chat_template=TEMPLATE
    )


def write_checkpoint(folder: Path, whisper_vq: bool = True) -> LlamaForCausalLM:
    """Write the checkpoint, and return the PyTorch model in it."""
    tokenizer = llama_tokenizer()
    tokenizer.save_pretrained(folder)
    model = helpers.torch_llama(vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(folder)
    if whisper_vq:
        shutil.copytree(helpers_whisper_vq.CONVERTED, folder / "whisper_vq")
    return model
