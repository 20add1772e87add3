"""Examples to model inputs with labels: the answer, and the token that ends it, are learned."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from mindone_audio.finetune.data.batches import IGNORED, ExampleCollator, TooLongError
from mindone_audio.finetune.data.examples import DataError, Example
from mindone_audio.setting_fields import SettingError


class AnswerCollator(ExampleCollator):
    """Puts examples into a batch: NumPy arrays that a model which answers questions takes, loss included.

    `input_ids`, `attention_mask` and `labels`, int64 `[batch, length]`, the labels -100 where nothing is to be learned;
    and what the family's processor gives for audio.

    Args:
        processor: the checkpoint's.
        generation_config: the model's. What ends an answer is then sure to be what `generate` stops at.
        chat: ask by the chat template, or for a base model by the raw prompt. None does what the pipeline does: what
            the checkpoint was tuned for, where generation_config is given, else the chat template.
        labels: "answer" learns the answer and its end, padded on the right. "all" learns the whole conversation but
            for audio and padding, as the processor's `output_labels` gives it, padded on the left as there; only with
            the chat template. The first token of a row, before which there is nothing to tell it from, is left out.
        max_length: tokens of the longest example allowed, audio included; None for any. Nothing is ever cut: without
            its end an answer would teach the model to go on.
        on_bad_clip: "raise", or "skip" examples whose clip cannot be read, is too long or too short for the model, or
            which exceed max_length: they are left out of the batch and put down in `skipped`.
        eos_token_id: the token that ends an answer. None finds it: what the chat template writes after an answer; for
            a base model the tokenizer's end token, or the first of generation_config's if that is not among them.
        pad_to_multiple_of: round lengths up, on the right, so that compiled training steps see few of them.

    Attributes:
        end: the tokens learned after an answer, of which the last is the one that ends it.
        skipped: (name, message) of each example that was left out, once.

    Raises `ValueError` for a wrong setting, and for a chat template whose end `generate` does not stop at.
    """

    def __init__(
        self,
        processor: Any,
        *,
        generation_config: Any = None,
        chat: bool | None = None,
        labels: str = "answer",
        max_length: int | None = None,
        on_bad_clip: str = "raise",
        eos_token_id: int | None = None,
        pad_to_multiple_of: int = 1,
    ):
        super().__init__(labels, max_length, on_bad_clip, pad_to_multiple_of)
        if chat is None:
            chat = generation_config is None or processor.answers_chats(generation_config)
        if labels == "all" and not chat:
            raise SettingError(
                lambda say: (
                    f"{say('labels', 'all')} learns a conversation, and a base model has none: use "
                    f"{say('labels', 'answer')}"
                )
            )
        if labels == "all" and eos_token_id is not None:
            raise SettingError(
                lambda say: (
                    f"{say('labels', 'all')} learns the end of the chat template: leave out {say('eos_token_id')}"
                )
            )
        self.processor, self.chat = processor, chat
        self.end = self._find_end(eos_token_id, generation_config)

    def _batch(self, loaded: list[tuple[Example, np.ndarray]]) -> dict[str, np.ndarray]:
        conversations = [[_question(example, clip)] for example, clip in loaded]
        answers = [example.answer for example, _ in loaded]
        if self.labels == "all":
            batch = self._whole(conversations, answers)
        else:
            prompts = self.processor.conversation_inputs(conversations, chat=self.chat)
            batch = self._with_answers(dict(prompts), self._tokens(answers))
        longest = int(batch["attention_mask"].sum(1).max())
        if self.max_length is not None and longest > self.max_length:
            raise TooLongError(
                lambda say: (
                    f"{longest} tokens, audio included, are more than {say('max_length', self.max_length)}: "
                    "raise it, or use shorter clips and texts"
                )
            )
        return batch | self._wide(batch, self._fills, self._rounded(batch["input_ids"].shape[1]))

    def _whole(self, conversations: list, answers: list[str]) -> dict[str, np.ndarray]:
        whole = [[*messages, _answer(answer)] for messages, answer in zip(conversations, answers)]
        batch = dict(self.processor.apply_chat_template(whole, tokenize=True, return_dict=True, output_labels=True))
        # Nothing comes before a row's first token but padding, whose scores depend on the other rows of the batch.
        batch["labels"][np.arange(len(whole)), batch["attention_mask"].argmax(1)] = IGNORED
        return batch

    def _tokens(self, answers: list[str]) -> list[list[int]]:
        rows = self.processor.tokenizer(answers, add_special_tokens=False, padding=False)["input_ids"]
        audio = getattr(self.processor, "audio_token_id", None)
        for row in rows:
            if audio in row:
                raise DataError(f"the answer has the word {self.processor.audio_token}, which stands for a clip")
            if self.end[-1] in row:
                word = self.processor.tokenizer.convert_ids_to_tokens(self.end[-1])
                raise DataError(f"the answer has the word {word}, which ends answers and is put there: leave it out")
        return rows

    def _with_answers(self, prompts: dict[str, np.ndarray], answers: list[list[int]]) -> dict[str, np.ndarray]:
        """Prompts, padded on the left, and the ids of their answers -> a batch that is padded on the right."""
        mask = prompts.pop("attention_mask") != 0
        questions = [row[seen].tolist() for row, seen in zip(prompts.pop("input_ids"), mask)]
        if "audio_token_start_idx" in prompts:  # of each window of Ultravox: its column in the padded prompt
            padding = np.repeat(mask.argmax(1), np.reshape(prompts["audio_batch_size"], -1))
            prompts["audio_token_start_idx"] = prompts["audio_token_start_idx"] - padding
        rows = [question + answer + self.end for question, answer in zip(questions, answers)]
        batch = {name: np.full((len(rows), max(map(len, rows))), fill) for name, fill in self._fills.items()}
        for place, (row, question) in enumerate(zip(rows, questions)):
            batch["input_ids"][place, : len(row)] = row
            batch["attention_mask"][place, : len(row)] = 1
            batch["labels"][place, len(question) : len(row)] = row[len(question) :]
        return batch | prompts

    @property
    def _fills(self) -> dict[str, int]:
        """What stands where a row has ended."""
        pad = self.processor.tokenizer.pad_token_id
        return {"input_ids": self.end[-1] if pad is None else pad, "attention_mask": 0, "labels": IGNORED}

    def _find_end(self, given: int | None, generation_config: Any) -> list[int]:
        """The tokens after an answer; `ValueError` if the model's `generate` would go on after them."""
        stops = _as_list(getattr(generation_config, "eos_token_id", None))
        if generation_config is not None and not stops:
            raise ValueError(
                "the model's generation_config (generation_config.json) has no eos_token_id, so generate would never "
                f"stop: set it to {self.processor.tokenizer.eos_token_id}"
            )
        default = self.processor.tokenizer.eos_token_id
        end = [given] if given is not None else _template_end(self.processor) if self.chat else []
        if not end and self.labels == "all":
            raise SettingError(
                lambda say: f"the chat template ends no answer by a special token: use {say('labels', 'answer')}"
            )
        if not end:
            end = [default if default in stops or not stops else stops[0]]
        if end[-1] is None:
            raise SettingError(
                lambda say: f"the tokenizer has no eos_token: pass {say('eos_token_id')}, the id that ends an answer"
            )
        if stops and end[-1] not in stops:
            what = self.processor.tokenizer.convert_ids_to_tokens(end[-1])
            raise SettingError(
                lambda say: (
                    f"answers end with {what} ({end[-1]}), but this model stops only on "
                    f"{', '.join(map(str, stops))}: pass {say('eos_token_id', stops[0])}, or set eos_token_id in the "
                    f"model's generation_config (generation_config.json) to {[*stops, end[-1]]}"
                )
            )
        return end


def _template_end(processor: Any) -> list[int]:
    """What the chat template writes after an answer, up to the first special token; empty where there is none.

    Whatever two conversations that differ in their answers have in common at their ends comes after the answer.
    """
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    ends = []
    for answer in "01":
        ids = processor.apply_chat_template([question, _answer(answer)], tokenize=True, return_dict=True)["input_ids"]
        ends.append(ids[0].tolist()[::-1])
    common = [pair[0] for pair in takewhile(lambda pair: pair[0] == pair[1], zip(*ends))][::-1]
    special = _special_ids(processor.tokenizer)
    places = [place for place, token in enumerate(common) if token in special]
    return common[: places[0] + 1] if places else []


def _special_ids(tokenizer: Any) -> set[int]:
    """The ids of control tokens; of Llama 3, `<|eot_id|>` is not among what transformers calls `all_special_ids`."""
    added = getattr(tokenizer, "added_tokens_decoder", {})  # mistral-common's has none
    return {token_id for token_id, token in added.items() if token.special} | {tokenizer.eos_token_id}


def _question(example: Example, clip: np.ndarray) -> dict:
    """The user's message as the pipeline writes it: the clip, then the text."""
    text = [{"type": "text", "text": example.prompt}] if example.prompt else []
    return {"role": "user", "content": [{"type": "audio", "audio": clip}, *text]}


def _answer(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [int(value)] if isinstance(value, (int, np.integer)) else [int(i) for i in value]
