"""Measures a demo checkpoint on recordings of real people and things, greedily and in both prompt forms.

    python scripts/demo_checkpoint/real_evaluation.py --checkpoint FOLDER --recordings FOLDER [--json FILE]

The recordings' folder has a manifest.json: a list of {"file", "kind", "text", "lang", "label"}. A kind of "speech",
"word" or "digit" is a voice, any other is a sound; `text` is what is said, `label` (or else the kind) names a sound.
The model hears each recording as 16 kHz mono, up to its window (10 s or 30 s), and is asked "What can you hear?", "Is
anybody speaking?" and, of voices, "Transcribe the audio.". Texts are compared as words: lower case, no punctuation,
no apostrophe, numbers in words (21 is "twenty one"; from 100 on, and with a leading zero, digit by digit). Measures:

digits          one digit word in English, or a file fsdd_DIGIT_SPEAKER_*: the transcription is that word, nothing else.
words           any other single English word: likewise (no target).
speaking        the answer begins with "Yes" for a voice and with "No" for a sound.
sentences       word error rate of the transcriptions of English speech of two words or more: substitutions, insertions
                and deletions over the words of the manifest's text. A clip longer than the window is left out.
foreign         speech not in English ("multi", a mixture, is left out): caption and transcription each say that the
                model "cannot make out" the words.
sounds          the caption says "do not know", or names the sound: it has a word of the label, or its other name in
                OTHER_NAMES. Silence must be named.
caption length  no caption has more than 40 tokens (its end is not counted), and each ends before the model's limit.

A label with a question mark is unsure: its recording is asked, and counted in the caption length only.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import librosa
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.evaluation import DemoModel, edit_distance  # noqa: E402
from demo_checkpoint.sounds import SAMPLE_RATE  # noqa: E402

QUESTIONS = {"caption": "What can you hear?", "speaking": "Is anybody speaking?", "transcribe": "Transcribe the audio."}
VOICES = ("speech", "word", "digit")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
OTHER_NAMES = {  # the word of a right caption: the words of a label that it may stand for
    "string": "guitar harp banjo ukulele",
    "knock": "tap",
    "click": "tap tick clock",
    "drum": "percussion",
    "alarm": "bell",
    "beep": "tone",
    "engine": "motor car",
    "noise": "rain static",
}
NO_NAMES = ("sound", "background", "the", "and", "with")
MAX_CAPTION_TOKENS = 40
UNKNOWN = ("foreign: caption", "foreign: transcribe", "sounds")  # "foreign and sounds" counts them together
TARGETS = {"digits": 90, "speaking": 97, "sentences": 35, **dict.fromkeys((*UNKNOWN, "foreign and sounds"), 80)}
TARGETS["caption length"] = 100
FORMS = ("raw", "chat")
BATCH_SIZE = 16


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    text = re.sub("['’]", "", unicodedata.normalize("NFKC", text).lower())
    words = []
    for word in re.findall(r"[0-9]+|[^\W\d_]+", text):
        if not word.isdecimal():
            words.append(word)
        elif len(word) == 2 and int(word) >= 20:
            words += [TENS[int(word[0]) - 2], *([ONES[int(word[1])]] if word[1] != "0" else [])]
        else:
            words += [ONES[int(word)]] if len(word) < 3 and str(int(word)) == word else [ONES[int(d)] for d in word]
    return words


@dataclass
class Recording:
    """A row of the manifest."""

    file: str
    kind: str
    text: str
    lang: str
    label: str
    seconds: float

    @property
    def voice(self) -> bool:
        """Whether somebody speaks."""
        return self.kind in VOICES

    @property
    def digit(self) -> tuple[str, str]:
        """The only word that is said if it is a digit, and the speaker; else two empty strings."""
        named = re.match(r"fsdd_(\d)_([^_]+)_", Path(self.file).name)
        if named:
            return ONES[int(named[1])], named[2]
        words = spoken_words(self.text or self.label)
        alone = self.voice and self.lang == "en" and len(words) == 1 and words[0] in ONES[:10]
        return (words[0], "other") if alone else ("", "")


@dataclass
class Answer:
    """What the model said of a recording, and how that counts."""

    file: str
    form: str  # "raw" or "chat"
    task: str
    question: str
    said: str
    tokens: int  # without the token that ends it
    ended: bool  # False where generation ran to the model's limit
    measure: str = ""  # empty where the answer is counted nowhere
    expected: str = ""
    errors: int = 0  # words of a sentence; else 0 or 1
    out_of: int = 1  # words of a sentence; else 1


def load(folder: Path) -> list[tuple[Recording, np.ndarray]]:
    """The rows of the manifest with their waves, float32 at 16 kHz."""
    found = []
    for row in json.loads((folder / "manifest.json").read_text(encoding="utf-8")):
        wave = librosa.load(folder / row["file"], sr=SAMPLE_RATE, mono=True)[0]
        text, lang, label = row.get("text") or "", row.get("lang") or "en", row.get("label") or row["kind"]
        seconds = len(wave) / SAMPLE_RATE
        found.append((Recording(row["file"], row["kind"], text, lang.split("-")[0].lower(), label, seconds), wave))
    return found


def ask(model: DemoModel, recordings: list[tuple[Recording, np.ndarray]], form: str, task: str) -> list[Answer]:
    """Put one question to all recordings."""
    question, answers = QUESTIONS[task], []
    ends = torch.tensor(model.model.generation_config.eos_token_id).reshape(-1)
    for start in range(0, len(recordings), BATCH_SIZE):
        part = recordings[start : start + BATCH_SIZE]
        prompts = [model.prompt(question, chat=form == "chat")] * len(part)
        waves = [wave for _, wave in part]
        rows = model.generate(waves, prompts)
        texts = model.processor.batch_decode(rows, skip_special_tokens=True)
        for (recording, _), row, said in zip(part, rows, texts, strict=True):
            at = torch.isin(row, ends).nonzero()
            tokens = int(at[0]) if len(at) else len(row)
            answers.append(Answer(recording.file, form, task, question, said, tokens, len(at) > 0))
    return answers


def names_sound(label: str, caption: str) -> bool:
    """Whether the caption names the sound or, unless it is silence, says that it does not know it."""
    words = [word for word in re.findall("[a-z]+", label.lower()) if word not in NO_NAMES]
    others = [name for name, meant in OTHER_NAMES.items() if set(words) & set(meant.split())]
    # Longer words lose their ending, so that "whistle" and "barking" are found in "whistling" and "barks".
    stems = [re.sub("(?<=....)(ing|e|s)$", "", word) if len(word) > 4 else rf"{word}s?\b" for word in words]
    said = caption.lower()
    unknown = "do not know" in said and "silence" not in words
    return unknown or any(re.search(rf"\b{stem}", said) for stem in stems + others)


def judge(answer: Answer, recording: Recording, window: float) -> None:
    """Fill in how an answer counts. window: what the model hears of a clip, in seconds."""
    words = spoken_words(recording.text)
    if "?" in recording.label:
        return
    if answer.task == "speaking":
        answer.measure, answer.expected = "speaking", "Yes" if recording.voice else "No"
        answer.errors = int(not answer.said.startswith(answer.expected))
    elif not recording.voice:
        answer.measure, answer.expected = "sounds", recording.label
        answer.errors = int(not names_sound(recording.label, answer.said))
    elif recording.lang not in ("en", "multi"):
        answer.measure, answer.expected = f"foreign: {answer.task}", "... cannot make out ..."
        answer.errors = int("cannot make out" not in answer.said.lower())
    elif answer.task == "transcribe" and (recording.digit[0] or (len(words) == 1 and recording.lang == "en")):
        answer.measure, answer.expected = ("digits", recording.digit[0]) if recording.digit[0] else ("words", words[0])
        answer.errors = int(spoken_words(answer.said) != [answer.expected])
    elif answer.task == "transcribe" and words and recording.lang == "en" and recording.seconds <= window:
        answer.measure, answer.expected, answer.out_of = "sentences", " ".join(words), len(words)
        answer.errors = edit_distance(words, spoken_words(answer.said))


def figures(answers: list[Answer]) -> dict[str, dict]:
    """Each measure of one prompt form: percent (of errors for "sentences", else of right answers), errors, out_of."""
    groups = defaultdict(list)
    for a in answers:
        if a.measure:
            groups[a.measure].append((a.errors, a.out_of))
        if a.measure in UNKNOWN:
            groups["foreign and sounds"].append((a.errors, a.out_of))
        if a.task == "caption":
            groups["caption length"].append((int(not a.ended or a.tokens > MAX_CAPTION_TOKENS), 1))
    result = {}
    for name, counts in sorted(groups.items()):
        errors, out_of = (sum(column) for column in zip(*counts, strict=True))
        wrong = 100 * errors / out_of
        result[name] = {"percent": wrong if name == "sentences" else 100 - wrong, "errors": errors, "out_of": out_of}
    return result


def why_left_out(recording: Recording, window: float) -> str:
    """Why a recording is missing from a measure that its kind belongs to, else an empty string."""
    if "?" in recording.label:
        return f"unsure label {recording.label!r}: caption length only"
    if recording.voice and recording.lang == "multi":
        return "several languages: speaking and caption length only"
    if not recording.voice or recording.lang != "en" or recording.digit[0]:
        return ""
    if not recording.text:
        return "no text: its transcription is not counted"
    return f"{recording.seconds:.1f} s of speech, {window:.0f} s are heard: not counted" * (recording.seconds > window)


def measure(checkpoint: Path, folder: Path) -> dict:
    """Ask everything: "raw" and "chat" with the figures of either form, then "left_out" and "answers"."""
    model, recordings = DemoModel(checkpoint), load(folder)
    extractor = model.processor.feature_extractor
    window = extractor.n_samples / extractor.sampling_rate
    rows = {recording.file: recording for recording, _ in recordings}
    voices = [pair for pair in recordings if pair[0].voice]
    result: dict = {}
    answers = []
    for form in FORMS:
        own = [a for task in QUESTIONS for a in ask(model, voices if task == "transcribe" else recordings, form, task)]
        for answer in own:
            judge(answer, rows[answer.file], window)
        digits = defaultdict(list)
        for a in own:
            if a.measure == "digits":
                digits[rows[a.file].digit[1]].append(a)
        result[form] = {
            "figures": figures(own),
            "digits_by_speaker": {n: f"{sum(not a.errors for a in d)} of {len(d)}" for n, d in digits.items()},
            "digits_mistaken": Counter(f"{a.expected} -> {a.said}" for d in digits.values() for a in d if a.errors),
            "longest_caption": max(a.tokens for a in own if a.task == "caption"),
        }
        answers += own
    left_out = {r.file: why_left_out(r, window) for r in rows.values() if why_left_out(r, window)}
    return result | {"left_out": left_out, "answers": [asdict(a) for a in answers]}


def table(result: dict) -> str:
    """The figures as a Markdown table, then digits by speaker, digits mistaken and what is left out."""
    lines = ["| measure | raw prompt | chat template | target |", "|---|---|---|---|"]
    for name in result["raw"]["figures"]:
        target, rate = TARGETS.get(name), name == "sentences"
        cells = []
        for f in (result[form]["figures"][name] for form in FORMS):
            missed = target is not None and (f["percent"] > target if rate else f["percent"] < target)
            cells.append(f"{f['percent']:.1f} % of {f['out_of']}{' (missed)' if missed else ''}")
        bound = "-" if target is None else f"at {'most' if rate else 'least'} {target} %"
        lines.append(f"| {name}{': word error rate' if rate else ''} | {' | '.join(cells)} | {bound} |")
    for form in FORMS:
        part = result[form]
        lines += ["", f"{form}: the longest caption has {part['longest_caption']} tokens"]
        lines.append(
            f"{form}: digits by speaker: {', '.join(f'{k} {v}' for k, v in part['digits_by_speaker'].items())}"
        )
        wrong = "; ".join(f"{pair} ({n})" for pair, n in part["digits_mistaken"].most_common())
        lines.append(f"{form}: digits mistaken: {wrong or 'none'}")
    lines += ["", "Left out:", *(f"{file}: {why}" for file, why in result["left_out"].items())]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the figures and every answer, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--recordings", type=Path, required=True, help="folder with manifest.json and the recordings")
    parser.add_argument("--json", type=Path, help="also write figures and answers to this file")
    args = parser.parse_args()
    result = measure(args.checkpoint, args.recordings)
    print(table(result), "\n")
    for a in result["answers"]:
        verdict = "-" if not a["measure"] else "right" if not a["errors"] else "WRONG"
        if a["measure"] == "sentences":
            verdict = f"{a['errors']} errors of {a['out_of']} words"
        mark = "" if a["ended"] else " (ran to the limit)"
        print(f"{a['file']} | {a['form']} | {a['question']} | {a['said']!r}{mark} | {a['expected']!r} | {verdict}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
