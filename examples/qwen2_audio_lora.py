"""Teach the bundled checkpoint three sounds that it does not know, by LoRA, without losing what it knows.

    python examples/qwen2_audio_lora.py [--output lora_sounds]

Makes the clips (scripts/demo_checkpoint/make_lora_sounds.py), asks the checkpoint about them, trains adapters of its
decoder, asks again, and prints how many answers were right letter by letter, before and after. It takes some minutes
on a CPU. The folder then holds the clips, `answers.json` with everything that was said, and `adapter`, which PyTorch's
PEFT loads.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # runs from a checkout, installed or not

from demo_checkpoint.make_lora_sounds import make_lora_sounds, write_rows  # noqa: E402
from demo_checkpoint.questions import QUESTIONS  # noqa: E402

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, pipeline  # noqa: E402
from mindone_audio.checkpoints import demo_checkpoint  # noqa: E402
from mindone_audio.finetune import (  # noqa: E402
    AnswerCollator,
    FinetuneSettings,
    LoraSettings,
    Trainer,
    add_lora,
    jsonl_examples,
)

TASKS = {question: task for task, questions in QUESTIONS.items() for question in questions}
BATCH_SIZE = 16


def read_rows(path: Path) -> list[dict]:
    """The lines of a list of questions."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(asked, rows: list[dict], folder: Path) -> list[str]:
    """What the pipeline `asked` says to each of the questions."""
    clips, questions = [folder / row["audio"] for row in rows], [row["prompt"] for row in rows]
    return asked(clips, questions, batch_size=BATCH_SIZE, max_new_tokens=40)["generated_text"]


def group(row: dict, split: str) -> str:
    """The line of the table that a question counts in: the kind of a new sound, the task of an old one."""
    return Path(row["audio"]).stem.rsplit("_", 1)[0] if split == "new" else TASKS[row["prompt"]]


def accuracies(rows: list[dict], said: list[str], split: str) -> dict[str, tuple[int, int]]:
    """Answers that are right letter by letter, and how many were asked: in all, and by group."""
    right = defaultdict(list)
    for row, text in zip(rows, said):
        for name in ("all", group(row, split)):
            right[name].append(text == row["answer"])
    return {name: (sum(values), len(values)) for name, values in right.items()}


def evaluate(asked, paths: dict[str, Path]) -> dict[str, dict]:
    """Accuracies on the two held-out lists, and under "said" what was answered."""
    figures = {"said": {}}
    for split in ("new", "old"):
        rows = read_rows(paths[split])
        said = answers(asked, rows, paths[split].parent)
        figures[split] = accuracies(rows, said, split)
        figures["said"][split] = [{**row, "said": text} for row, text in zip(rows, said)]
    return figures


def training_list(asked, paths: dict[str, Path]) -> Path:
    """One list to train on: the questions with answers, and the rehearsal with the checkpoint's own answers."""
    rows = read_rows(paths["rehearsal"])
    own = answers(asked, rows, paths["rehearsal"].parent)
    rehearsal = [{**row, "answer": text} for row, text in zip(rows, own) if text]
    return write_rows(paths["train"].with_name("train_and_rehearsal.jsonl"), read_rows(paths["train"]) + rehearsal)


def print_table(before: dict, after: dict) -> None:
    """Percentages before and after, of the new sounds and of the old tasks."""
    print(f"\n{'':22}{'before':>9}{'after':>9}   questions")
    for split, title in (("new", "new sounds, held out"), ("old", "old tasks, held out")):
        for name, (right, asked) in sorted(before[split].items(), key=lambda item: item[0] != "all"):
            percents = "".join(f"{100 * part / asked:7.1f} %" for part in (right, after[split][name][0]))
            print(f"{title if name == 'all' else f'  {name}':22}{percents}   {asked}")


def teach(model, processor, train: Path, folder: Path, steps: int) -> None:
    """Train adapters of the decoder's linear layers on a list of questions and save them; `model` has them then."""
    settings = FinetuneSettings(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        logging_steps=50,
    )
    collator = AnswerCollator(processor, generation_config=model.generation_config, pad_to_multiple_of=32)
    Trainer(add_lora(model, LoraSettings(r=16, alpha=32)), processor, collator, settings, jsonl_examples(train)).train()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("lora_sounds"), help="folder for clips and adapter")
    parser.add_argument("--steps", type=int, default=400, help="training steps of 8 questions (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    return parser.parse_args()


def main() -> None:
    """Ask, teach, ask again."""
    arguments = parse_arguments()
    begun = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begun:5.0f} s  {text}", flush=True)

    paths = make_lora_sounds(arguments.output, arguments.seed)
    say(f"made the clips in {arguments.output}")
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    model = AutoModelForAudioTextToText.from_pretrained(demo_checkpoint())
    asked = pipeline(model=model, processor=processor)
    before = evaluate(asked, paths)
    say("asked the checkpoint about the held-out clips")
    train = training_list(asked, paths)
    say("asked it about speech, to rehearse its own answers")
    teach(model, processor, train, arguments.output / "adapter", arguments.steps)
    say(f"trained for {arguments.steps} steps")
    after = evaluate(asked, paths)
    say("asked again")
    print_table(before, after)
    told = {"before": before["said"], "after": after["said"]}
    (arguments.output / "answers.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
