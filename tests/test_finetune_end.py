"""A fine-tuned model ends its answers, because the end token is learned; without it, it goes on."""

from pathlib import Path

import numpy as np
import pytest
from helpers_processor import tone

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, to_mindspore
from mindone_audio.checkpoints import demo_checkpoint
from mindone_audio.finetune import AnswerCollator, Example, FinetuneSettings, LoraSettings, Trainer, add_lora

NEW_ANSWERS = ("The green pump.", "A broken fan.")
MACHINE = "Which machine is it?"
LIMIT = 48  # tokens; the answers have 6 and 7


def tuned_tokens(folder: Path, learn_end: bool) -> tuple[list[list[int]], list[str], set[int]]:
    """What the bundled checkpoint generates after it was taught two answers, the texts, and the ids that end them.

    learn_end: False leaves the end token out of the labels, as a collator does that masks padding by its id where the
    two are the same.
    """
    model = AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    collator = AnswerCollator(processor, generation_config=model.generation_config)
    examples = [Example(tone(0.5 + 0.5 * i, seed=i), MACHINE, text) for i, text in enumerate(NEW_ANSWERS)]

    def collate(batch):
        inputs = collator(batch)
        if not learn_end:
            inputs["labels"] = np.where(np.isin(inputs["labels"], collator.end), -100, inputs["labels"])
        return inputs

    settings = FinetuneSettings(
        str(folder), max_steps=40, learning_rate=5e-3, lr_scheduler_type="cosine", warmup_ratio=0.1, compile=False
    )
    adapted = add_lora(model, LoraSettings())
    Trainer(adapted, processor, collate, settings, examples).train(progress=False)
    messages = [
        [{"role": "user", "content": [{"type": "audio", "audio": e.audio}, {"type": "text", "text": MACHINE}]}]
        for e in examples
    ]
    inputs = processor.conversation_inputs(messages, chat=collator.chat)
    tokens = adapted.generate(**to_mindspore(inputs, dtype=model.dtype), max_new_tokens=LIMIT, do_sample=False)
    new = tokens.asnumpy()[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    return new.tolist(), processor.batch_decode(new, skip_special_tokens=True), {ends} if type(ends) is int else {*ends}


@pytest.mark.slow
def test_a_tuned_model_stops(tmp_path):
    tokens, texts, ends = tuned_tokens(tmp_path / "whole", learn_end=True)
    assert tuple(texts) == NEW_ANSWERS
    assert len(tokens[0]) < LIMIT  # generate itself came to an end
    assert all(ends & set(row) for row in tokens)


@pytest.mark.slow
@pytest.mark.long
def test_a_model_tuned_without_the_end_token_goes_on(tmp_path):
    """What the test above would show of a collator that forgets the end."""
    tokens, texts, ends = tuned_tokens(tmp_path / "broken", learn_end=False)
    assert all(text.startswith(answer) for text, answer in zip(texts, NEW_ANSWERS))  # what was learned is the same
    assert all(len(row) == LIMIT and not ends & set(row) for row in tokens)
