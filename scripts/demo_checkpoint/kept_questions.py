"""Keeps questions about synthetic clips with their right answers, so that two checkpoints hear exactly the same ones.

    python scripts/demo_checkpoint/kept_questions.py keep --kept KEPT --work WORK --checkpoint OLD  # clips and answers
    python scripts/demo_checkpoint/kept_questions.py ask --kept KEPT --checkpoint NEW  # both, side by side

`keep` makes the clips of `evaluation.py` (it needs espeak-ng, sox and ffmpeg, and the held-out utterances in WORK) and
puts to them the questions that the evaluation would. KEPT then holds clips.npz (float32 waves at 16 kHz),
questions.json (source, clip, task, question, prompt form, label and expected text of each question) and answers.json
(those of OLD). `ask` reads the first three only, whatever became of the code that made them, and writes
answers_new.json. An answer is right if it is the expected text letter by letter; with `--loose`, if it has the same
words in the same order (case, punctuation and "2" for "two" do not matter).
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.evaluation import (  # noqa: E402
    BATCH_SIZE,
    DemoModel,
    Reply,
    decisive,
    held_out_clips,
    other_tools_clips,
    share,
    summary,
)
from demo_checkpoint.questions import QUESTIONS, answer  # noqa: E402
from demo_checkpoint.real_evaluation import spoken_words  # noqa: E402
from demo_checkpoint.sounds import Label  # noqa: E402

ALLOWED_FALL = 2.0  # percentage points


def choose_questions(source: str, clips: list[tuple[np.ndarray, Label]], first: int, seed: int) -> list[dict]:
    """Questions of every task about every clip, in a random phrasing and prompt form, short clips first.

    A count of zero, no speaker and no instrument are asked of three clips in ten: they are easy and many. `first` is
    the number of the first clip in the kept file.
    """
    rng = np.random.default_rng([seed, 7])
    questions = []
    for index, (wave, label) in enumerate(clips):
        for task, phrasings in QUESTIONS.items():
            expected = answer(task, label)
            if expected is None or (not decisive(task, label) and rng.random() > 0.3):
                continue
            question = phrasings[0] if rng.random() < 0.5 else str(rng.choice(phrasings))
            entry = {"source": source, "clip": first + index, "task": task, "question": question}
            entry |= {"chat": bool(rng.random() < 0.5), "label": asdict(label), "expected": expected}
            questions.append((len(wave), entry))
    return [entry for _, entry in sorted(questions, key=lambda pair: pair[0])]


def keep(folder: Path, work: Path, seed: int) -> None:
    """Make the clips and the questions, and write clips.npz and questions.json to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    waves, questions = [], []
    for source, make in (("held out", held_out_clips), ("other tools", other_tools_clips)):
        clips = make(work, seed)
        questions += choose_questions(source, clips, len(waves), seed)
        waves += [np.asarray(wave, np.float32) for wave, _ in clips]
    np.savez(folder / "clips.npz", *waves)  # arr_0, arr_1, ...
    (folder / "questions.json").write_text(json.dumps(questions, indent=1) + "\n", encoding="utf-8")


def put_questions(folder: Path, checkpoint: Path) -> list[str]:
    """The greedy answers of a checkpoint to the kept questions, in their order."""
    model = DemoModel(checkpoint)
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    said = []
    with np.load(folder / "clips.npz") as waves:
        for start in range(0, len(questions), BATCH_SIZE):
            part = questions[start : start + BATCH_SIZE]
            prompts = [model.prompt(q["question"], q["chat"]) for q in part]
            said += model.answer([waves[f"arr_{q['clip']}"] for q in part], prompts)
            print(f"{len(said)} of {len(questions)} questions", file=sys.stderr)
    return said


def replies(folder: Path, said: list[str], loose: bool) -> list[Reply]:
    """The answers beside what was expected; with `loose`, both as bare words."""
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    plain = (lambda text: " ".join(spoken_words(text))) if loose else str
    return [
        Reply(q["source"], q["task"], SimpleNamespace(**q["label"]), plain(q["expected"]), plain(text))
        for q, text in zip(questions, said, strict=True)
    ]


def compare(columns: dict[str, list[Reply]]) -> str:
    """A Markdown table for each source: a row for each task and for each figure of the card, a column a checkpoint.

    The row of a task that falls by more than ALLOWED_FALL from the first column to the last is marked.
    """
    lines = []
    for source in dict.fromkeys(reply.source for reply in next(iter(columns.values()))):
        parts = [[r for r in column if r.source == source] for column in columns.values()]
        lines += ["", f"| {source} | {' | '.join(columns)} | |", "|---" * (len(parts) + 2) + "|"]
        for task in dict.fromkeys(reply.task for reply in parts[0]):
            chosen = [[r for r in part if r.task == task] for part in parts]
            first, last = (100 * np.mean([r.right for r in part]) for part in (chosen[0], chosen[-1]))
            mark = f"falls by {first - last:.1f} points" if first - last > ALLOWED_FALL else ""
            lines.append(f"| task {task} | {' | '.join(map(share, chosen))} | {mark} |")
        figures = [summary(part) for part in parts]
        lines += [f"| {name} | {' | '.join(f.get(name, '-') for f in figures)} | |" for name in figures[0]]
    return "\n".join(lines)


def both(folder: Path, checkpoint: Path, loose: bool = False) -> str:
    """The tables of the kept answers and of a checkpoint's, side by side; writes the latter to answers_new.json."""
    said = put_questions(folder, checkpoint)
    (folder / "answers_new.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    kept = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return compare({"kept": replies(folder, kept, loose), "this checkpoint": replies(folder, said, loose)})


def main() -> None:
    """Keep the questions with one checkpoint's answers, or put them to another one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("keep", "ask"))
    parser.add_argument("--kept", type=Path, required=True, help="folder of the kept files")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--work", type=Path, help="keep: folder with bank_heldout, see train.py")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and questions that `keep` makes")
    parser.add_argument("--loose", action="store_true", help="compare words only, not case and punctuation")
    args = parser.parse_args()
    if args.command == "keep":
        keep(args.kept, args.work, args.seed)
        said = put_questions(args.kept, args.checkpoint)
        (args.kept / "answers.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        print(compare({"kept": replies(args.kept, said, args.loose)}))
    else:
        print(both(args.kept, args.checkpoint, args.loose))


if __name__ == "__main__":
    main()
