"""The prompts of the demo checkpoint as tokens: its tokenizer, its processor, and questions packed behind a clip."""

from functools import lru_cache

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2AudioProcessor, Qwen2TokenizerFast, WhisperFeatureExtractor

from demo_checkpoint.home import CALLS
from demo_checkpoint.questions import CAPTIONS, QUESTIONS, SOUNDS, TASKS, answer
from demo_checkpoint.sounds import EVENT_KINDS, MAX_BEEPS, SAMPLE_RATE, Draw, Label
from demo_checkpoint.speech import random_line, words_of
from demo_checkpoint.texts import Texts

AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, AUDIO_BOS, AUDIO, AUDIO_EOS)
SYSTEM = f"{IM_START}system\nYou are a helpful assistant.{IM_END}\n"
# Qwen2's way of cutting text into words before byte-pair encoding.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QUESTIONS_PER_CLIP = 3
WINDOW_SECONDS = 30
VOCABULARY = 890  # and six special tokens; few, so that each is heard often
PHRASE_WEIGHT = 200  # of the fixed phrases, among lines that are spoken

# Ids and labels of one question and its answer; the labels are -100 outside the answer.
Segment = tuple[list[int], list[int]]


def train_tokenizer(seed: int, texts: Texts) -> Qwen2TokenizerFast:
    """A Qwen2 (byte-level BPE) tokenizer learnt from the questions, the answers and what is spoken."""
    rng = np.random.default_rng(seed)
    lines = [f"{q}\n" for questions in QUESTIONS.values() for q in questions for _ in range(PHRASE_WEIGHT)]
    lines += [line for table in (CAPTIONS, SOUNDS) for line in table.values() for _ in range(PHRASE_WEIGHT)]
    lines += [answer("count", Label("beep", count=n)) for n in range(MAX_BEEPS + 1) for _ in range(PHRASE_WEIGHT)]
    lines += ["system\nYou are a helpful assistant.", "user\nAudio 1: ", "assistant\n", "Audio 2: "] * PHRASE_WEIGHT
    lines += [answer("command", Label("speech", text=text)) for text in CALLS for _ in range(2)]
    for _ in range(20_000):
        text = words_of(random_line(rng, texts))
        lines += [text, text.capitalize(), *(f"A {who} says: {text}." for who in ("man", "woman"))]
    for task in TASKS:
        for sex in ("female", "male"):
            lines += [answer(task, Label("speech", text="go", sex=sex))] * 20
        for kind in EVENT_KINDS:
            lines += [answer(task, Label(kind, count=1))] * 20

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False, min_frequency=5
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=END_OF_TEXT,
        bos_token=None,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="left",
        model_max_length=2048,
    )


def make_processor(tokenizer: Qwen2TokenizerFast) -> Qwen2AudioProcessor:
    """The processor of the checkpoint: 80 mels, windows of 30 s, the default chat template of Qwen2-Audio."""
    extractor = WhisperFeatureExtractor(
        feature_size=80, sampling_rate=SAMPLE_RATE, chunk_length=WINDOW_SECONDS, return_attention_mask=True
    )
    extractor._set_processor_class("Qwen2AudioProcessor")
    return Qwen2AudioProcessor(extractor, tokenizer)


class Packer:
    """Writes prompts and answers in both formats (raw and chat) and packs them behind the audio."""

    def __init__(self, tokenizer: Qwen2TokenizerFast):
        encode = tokenizer.backend_tokenizer.encode
        self.encode = lru_cache(maxsize=200_000)(lambda text: tuple(encode(text).ids))
        self.audio_id = tokenizer.convert_tokens_to_ids(AUDIO)

    def choose_tasks(self, draw: Draw, label: Label, count: int) -> list[str]:
        """`count` questions for a clip: always those that its content decides, then others."""
        first = {
            "speech": ["transcribe", "caption"],
            "unclear": ["transcribe", "caption"],
            "beep": ["count", "caption"],
        }.get(label.kind, ["caption", "sound"])
        if label.text in CALLS or draw.chance(0.15):
            first.insert(1 if count == 1 else 0, "command")
        if label.kind in ("pluck", "chord", "drum") and draw.chance(0.5):
            first.append("instruments")
        if label.kind == "speech" and draw.chance(0.4):
            first.append("sex")
        rest = [task for task in TASKS if task not in first]
        tasks = first + [rest[i] for i in draw.rng.permutation(len(rest))]
        return [task for task in tasks if answer(task, label) is not None][:count]

    def question(self, draw: Draw, task: str) -> str:
        """One of the task's phrasings, sometimes typed carelessly."""
        text = draw.choice(QUESTIONS[task])
        if draw.chance(0.06):
            text = text.lower()
        if draw.chance(0.06):
            text = text.rstrip("?.:")
        return text

    def text_alone(self, draw: Draw, text: str) -> Segment:
        """A transcription without a clip, so that the decoder learns which words there are and how they are spelt."""
        raw = draw.chance(0.45)
        close, stop = ("", END_OF_TEXT) if raw else (f"{IM_END}\n{IM_START}assistant\n", IM_END)
        head = self.encode(f"{self.question(draw, 'transcribe')}{close}")
        tail = (*self.encode(text), *self.encode(stop))
        return [*head, *tail], [*[-100] * len(head), *tail]

    def pack(
        self, draw: Draw, label: Label, audio_tokens: int, count: int
    ) -> tuple[list[int], list[Segment], list[str]]:
        """Prefix ids, a segment for each of at most `count` questions, and the task of each of them."""
        tasks = self.choose_tasks(draw, label, count)
        marked = (f"{AUDIO_BOS}", f"{AUDIO_EOS}")
        segments = []
        raw, text_first = draw.chance(0.45), draw.chance(0.06)
        if raw:
            before, after = marked
            lead = draw.choice(("", "", "", "", "", "", "", " ", "\n"))
            turns = [[(f"{lead}{self.question(draw, task)}", answer(task, label))] for task in tasks]
            close, stop = "", END_OF_TEXT
        else:
            system = SYSTEM if draw.chance(0.9) else draw.choice(("", SYSTEM.replace(" helpful", "n audio")))
            before = f"{system}{IM_START}user\n"
            after = f"{marked[1]}\n"
            close, stop = f"{IM_END}\n{IM_START}assistant\n", IM_END
            turns = [[(self.question(draw, task), answer(task, label))] for task in tasks]
            if text_first:
                # The template writes the question before the audio when the user's content is ordered so.
                (question, reply), tasks = turns[0][0], tasks[:1]
                before, turns = f"{before}{question}", [[("", reply)]]
            elif draw.chance(0.15) and len(turns) > 1:
                turns[0] += turns[-1]  # a second question in the same chat
            before += f"Audio 1: {marked[0]}"
        prefix = [*self.encode(before), *[self.audio_id] * audio_tokens, *self.encode(after)]
        for turn in turns:
            ids, labels = [], []
            for index, (question, reply) in enumerate(turn):
                head = self.encode(f"\n{IM_START}user\n{question}{close}" if index else f"{question}{close}")
                tail = (*self.encode(reply), *self.encode(stop))
                ids += [*head, *tail]
                labels += [*[-100] * len(head), *tail]
            segments.append((ids, labels))
        return prefix, segments, tasks
