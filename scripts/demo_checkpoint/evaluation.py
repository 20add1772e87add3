"""The model as a user loads it, the synthetic clips that it is measured on, and what is counted.

Two sets: clips synthesised as in training but from held-out voices, parameters and noise; and clips made by tools that
training never used (sox, and ffmpeg's mp3 and ogg at 8 to 44.1 kHz). `kept_questions.py` asks about them.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from demo_checkpoint.batches import log_mel, make_clip
from demo_checkpoint.model import encode_audio
from demo_checkpoint.prompts import AUDIO, AUDIO_BOS, AUDIO_EOS
from demo_checkpoint.sounds import EVENT_KINDS, MAX_BEEPS, SAMPLE_RATE, Draw, Label
from demo_checkpoint.speech import SpeechBank, random_text, random_utterance, words_of

BATCH_SIZE = 24


@dataclass
class Reply:
    """One question put to the model, what it said and what was right."""

    source: str
    task: str
    label: Label
    expected: str
    said: str

    @property
    def right(self) -> bool:
        """Whether the reply is the expected text, letter by letter."""
        return self.said == self.expected


class DemoModel:
    """The checkpoint as a user loads it: float32 weights from the bfloat16 file."""

    def __init__(self, folder: Path):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model, info = Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        problems = {name: keys for name, keys in info.items() if keys}
        if problems:
            raise ValueError(f"{folder.name} does not load cleanly: {problems}")
        self.model.eval()
        self.window = self.processor.feature_extractor.chunk_length * SAMPLE_RATE  # samples

    def prompt(self, question: str, chat: bool) -> str:
        """The text of a question about one clip, as a raw prompt or by the chat template."""
        if not chat:
            return f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}{question}"
        content = [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    @torch.no_grad()
    def generate(self, clips: list[np.ndarray], prompts: list[str]) -> torch.Tensor:
        """Greedy new tokens (B, N) for one prompt a clip.

        The encoder is given the window up to the longest clip's end, not all of it: the padding is masked, so that its
        states are the same.
        """
        mel, num_frames = log_mel([clip[: self.window] for clip in clips])
        mel = mel[..., : 2 * self.model.audio_tower.embed_positions.num_embeddings]
        states, valid = encode_audio(self.model, mel, num_frames)
        prompts = [prompt.replace(AUDIO, AUDIO * int(row.sum())) for prompt, row in zip(prompts, valid, strict=True)]
        inputs = self.processor.tokenizer(prompts, return_tensors="pt", padding=True)
        embeds = self.model.get_input_embeddings()(inputs["input_ids"])
        placeholder = inputs["input_ids"] == self.model.config.audio_token_index
        audio = self.model.multi_modal_projector(states)[valid]
        return self.model.language_model.generate(
            inputs_embeds=embeds.masked_scatter(placeholder[..., None], audio),
            attention_mask=inputs["attention_mask"],
            generation_config=self.model.generation_config,
        )

    def answer(self, clips: list[np.ndarray], prompts: list[str]) -> list[str]:
        """Greedy replies to one prompt a clip."""
        return self.processor.batch_decode(self.generate(clips, prompts), skip_special_tokens=True)


def decisive(task: str, label: Label) -> bool:
    """Whether the clip has what the question is about."""
    if task in ("transcribe", "sex"):
        return label.kind == "speech"
    if task == "count":
        return label.kind == "beep"
    if task == "instruments":
        return label.kind in ("pluck", "chord", "drum")
    return True


def edit_distance(reference: list[str], said: list[str]) -> int:
    """Word substitutions, insertions and deletions between two sentences."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(said, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def word_error_rate(replies: list[Reply]) -> float:
    """Word errors over words, of the transcriptions of speech."""
    spoken = [r for r in replies if r.task == "transcribe" and r.label.kind == "speech"]
    errors = sum(edit_distance(r.expected.split(), r.said.split()) for r in spoken)
    return errors / sum(len(r.expected.split()) for r in spoken)


def share(replies: list[Reply]) -> str:
    """'97.5 % of 200'."""
    if not replies:
        return "-"
    return f"{100 * sum(r.right for r in replies) / len(replies):.1f} % of {len(replies)}"


def summary(replies: list[Reply]) -> dict[str, str]:
    """The figures of the card, by name."""

    def pick(*tasks: str, speech: bool | None = None, kinds: tuple[str, ...] = ()) -> list[Reply]:
        return [
            r
            for r in replies
            if r.task in tasks
            and (speech is None or (r.label.kind == "speech") == speech)
            and (not kinds or r.label.kind in kinds)
        ]

    events = tuple(k for k in EVENT_KINDS if k != "beep")
    return {
        'Events named (caption and "What\'s that sound?", clips without speech or beeps)': share(
            pick("caption", "sound", kinds=events)
        ),
        "Beeps counted, one to five": share(pick("count", kinds=("beep",))),
        "Beeps counted where there is none": share([r for r in pick("count") if r.label.kind != "beep"]),
        "Caption of beeps (the number of beeps)": share(pick("caption", kinds=("beep",))),
        "Word error rate of transcriptions": f"{100 * word_error_rate(replies):.1f} %",
        "Transcriptions without any error": share(pick("transcribe", speech=True)),
        "Captions of speech without any error (words and sex)": share(pick("caption", speech=True)),
        "Transcription asked where nobody speaks": share(pick("transcribe", speech=False)),
        '"Is anybody speaking?"': share(pick("speaking")),
        "Sex of the speaker": share(pick("sex", speech=True)),
        "Sex asked where nobody speaks": share(pick("sex", speech=False)),
        "Instruments": share(pick("instruments")),
    }


def held_out_clips(work: Path, seed: int) -> list[tuple[np.ndarray, Label]]:
    """200 spoken clips, 80 of beeps and 12 of each other event, from held-out voices and parameters."""
    bank = SpeechBank({work / "bank_heldout": 1.0})
    draw = Draw(np.random.default_rng([seed, 2]), held_out=True)
    clips = [make_clip(draw, bank, "speech") for _ in range(200)]
    clips += [make_clip(draw, bank, "beep") for _ in range(80)]
    return clips + [make_clip(draw, bank, kind) for kind in EVENT_KINDS if kind != "beep" for _ in range(12)]


SOX_SHAPES = ("sine", "square", "triangle", "sawtooth", "trapezium")


def sox_recipes(rng: np.random.Generator) -> list[tuple[list[str], Label]]:
    """Arguments of `sox -n file` and what they sound like."""

    def number(low: float, high: float) -> str:
        return f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3f}"

    recipes = []
    for index in range(50):
        count, shape = index % MAX_BEEPS + 1, SOX_SHAPES[index // MAX_BEEPS % len(SOX_SHAPES)]
        one = ["synth", number(0.06, 0.4), shape, number(300, 3800), "pad", "0", number(0.09, 0.7)]
        recipes.append((one + (["repeat", str(count - 1)] if count > 1 else []), Label("beep", count=count)))
    for index in range(12):
        colour = ("whitenoise", "pinknoise", "brownnoise")[index % 3]
        recipes.append((["synth", number(1, 8), colour], Label("noise")))
    for index in range(10):
        sweep = f"{number(350, 700)}{':/'[index % 2]}{number(1000, 1800)}"
        recipes.append((["synth", number(1.8, 5), SOX_SHAPES[index % 4], sweep], Label("siren")))
    for index in range(10):
        notes = ["pluck", number(85, 500)] if index < 6 else ["pluck", "C3", "pluck", "E3", "pluck", "G3"]
        recipes.append((["synth", number(0.8, 2.5), *notes], Label("pluck")))
    for index in range(8):
        root = float(number(130, 400))
        shape = ("sine", "triangle")[index % 2]
        notes = [part for ratio in (1, 1.26, 1.498) for part in (shape, f"{root * ratio:.2f}")]
        recipes.append((["synth", "2", *notes, "fade", "l", "0.005", "2", "1.9"], Label("chord")))
    for index in range(8):
        recipes.append((["synth", number(1.5, 6), SOX_SHAPES[index % 4 + 1], number(45, 130)], Label("engine")))
    for _ in range(8):
        pulse = ["synth", number(0.04, 0.09), "square", number(800, 2800), "pad", "0", number(0.05, 0.1)]
        recipes.append(([*pulse, "repeat", str(rng.integers(13, 25))], Label("alarm")))
    for _ in range(6):
        tick = ["synth", "0.0015", "whitenoise", "pad", "0.1", number(0.15, 0.6), "repeat", str(rng.integers(1, 7))]
        recipes.append((tick, Label("click")))
    recipes += [(["trim", "0", seconds], Label("silence")) for seconds in ("0.5", "1.5", "4", "9")]
    return recipes


def other_tools_clips(work: Path, seed: int) -> list[tuple[np.ndarray, Label]]:
    """Clips written by sox and by espeak-ng itself (held-out voices), encoded by ffmpeg and read by librosa."""
    rng = np.random.default_rng([seed, 3])
    folder = work / "other_tools"
    folder.mkdir(exist_ok=True)
    sources = []
    for index, (recipe, label) in enumerate(sox_recipes(rng)):
        path = folder / f"sox_{index:03d}.wav"
        level = ["remix", "-", "norm", f"{rng.uniform(-20, -0.5):.1f}"] if label.kind != "silence" else []
        pad = ["pad", f"{rng.uniform(0, 0.8):.2f}", f"{rng.uniform(0, 1.5):.2f}"] if rng.random() < 0.5 else []
        rate = str(rng.choice([16000, 22050, 44100, 48000]))
        subprocess.run(["sox", "-R", "-n", "-r", rate, "-c", "1", path, *recipe, *level, *pad], check=True)
        sources.append((path, label))
    for index in range(60):
        spoken = random_utterance(rng, True, random_text(rng))
        path = folder / f"speech_{index:03d}.wav"
        subprocess.run(["espeak-ng", "-v", spoken.voice, "-w", path, spoken.text], check=True)
        sources.append((path, Label("speech", text=words_of(spoken.text), sex=spoken.sex)))
    clips = []
    for path, label in sources:
        suffix = str(rng.choice([".wav", ".mp3", ".ogg"]))
        rate = str(rng.choice([16000, 22050, 44100] if label.kind == "beep" else [8000, 16000, 22050, 44100]))
        encoded = path.with_name(f"{path.stem}_x{suffix}")
        volume = f"volume={rng.uniform(-16 if label.kind == 'speech' else -6, 0):.1f}dB"
        command = ["ffmpeg", "-y", "-v", "error", "-i", path, "-ac", str(rng.integers(1, 3)), "-ar", rate]
        subprocess.run([*command, "-af", volume, encoded], check=True)
        clips.append((librosa.load(encoded, sr=SAMPLE_RATE, mono=True)[0], label))
    return clips
