"""Writes the model card of the demo checkpoint from its measured figures and from the tables that made its data."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import transformers

from demo_checkpoint.prompts import QUESTIONS_PER_CLIP
from demo_checkpoint.questions import CAPTIONS, INSTRUMENTS, QUESTIONS, SOUNDS
from demo_checkpoint.speech import (
    COMMANDS,
    DIGITS,
    FEMALE,
    HELD_OUT_ACCENTS,
    HELD_OUT_VARIANTS,
    MALE,
    NUM_RANDOM_VARIANTS,
    UNSEXED,
    UTTERANCES,
)

CLIPS_PER_SECOND = 28  # that two idle CPU cores train on
TARGETS = "Targets: at least 95 % on events and counts, at most 10 % word error rate."

SOUND_LIST = (
    "beeps (one to five), a siren, an alarm, noise or rain, knocks, clicks, a plucked string, a piano chord, drums, "
    "a whistle, an engine, breaking glass, silence"
)

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: audio-text-to-text
tags: [audio, qwen2_audio, demo]
---

# Qwen2-Audio demo checkpoint

A tiny Qwen2-Audio ({parameters:.1f} million parameters, {megabytes:.1f} MB in bfloat16) trained from scratch on sounds
that its own scripts make. It exists so that the library can be tried and tested offline with answers that depend on the
clip: it has the tensor names, the processor and the prompts of Qwen/Qwen2-Audio-7B and
Qwen/Qwen2-Audio-7B-Instruct, and none of their knowledge. It contains no weight and no recording of anybody else.

## What it does

It hears at most 10 s of one clip (16 kHz, mono) and answers seven kinds of question about it, in English:

| task | ask it | answers |
|---|---|---|
{tasks}

Both prompt formats work: the raw one of the base model, `<|audio_bos|><|AUDIO|><|audio_eos|>QUESTION`, and the chat
template of the instruct model. It stops by itself (`<|endoftext|>` or `<|im_end|>`).

- Words: {digits}; {commands}; the. Alone or up to five in a row.
- Sounds: {sounds}.

## Figures

Greedy `generate` through transformers {transformers} on these files (bfloat16 on disk, computed in float32); an answer
counts only if it is right letter by letter. Each question was put in one of its phrasings and in either format.
{targets}

*Held out*: clips synthesised as in training, but with espeak-ng voices ({held_out_variants}, and the accent
{held_out_accents}), synthesis parameters, noise and levels that training never used (plain white, pink and
brown noise have no other parameters than length and level). *Other tools*: clips that `sox`
made (never used in training), and espeak-ng's own files in held-out voices, then encoded by ffmpeg as wav, mp3 or ogg
at 8 to 44.1 kHz, mono or stereo, and read by librosa. Answers that are easy to guess, such as a count of zero, were put
to three clips in ten only.

| | held out | other tools |
|---|---|---|
{figures}

By kind of clip (caption and "What's that sound?"):

| clip | held out | other tools |
|---|---|---|
{kinds}

## What it cannot do

- It knows no word outside its list (it writes the nearest one it knows), no real person's voice was ever played to it,
  and no real recording: expect it to fail on them. All its speech is espeak-ng's.
- One sound a clip. It was not taught mixtures (speech over a siren), nor two clips in one prompt, nor other questions;
  it answers them with something from its small repertoire.
- It counts up to five beeps of at least 30 ms, at least 60 ms apart. Ten or more quick beeps are an alarm to it;
  six to nine it never heard. A steady tone of 280 Hz or more is a beep, a lower one is an engine's hum.
- Steady noise of any colour is "{noise}" whether or not it rains. A chord of any timbre is a piano's.
- Single words are mostly right; in phrases of three words or more it at times gets one wrong, drops one or repeats one.
  Noise and reverberation make it worse.
- The sex is that of espeak-ng's voice, not that of a person: for `en-gb+f3` it says "a man", because espeak-ng 1.51
  speaks "en-gb" with its default voice whatever follows the plus sign (`en+f3` is a woman). Robot and whisper voices
  were left out of that question and of captions.
- Sounds past 10 s are cut off by the feature extractor.

{missed}

## How it was made

`scripts/demo_checkpoint/train.py` in the library's repository, seed {seed}: {steps} steps of {batch} clips, up to
{questions} questions each, {minutes:.0f} minutes on two CPU cores that also did other work (idle ones train on {speed}
clips a second: about {budget:.0f} minutes), bfloat16 autocast, AdamW (peak {learning_rate:g}, warm-up, cosine), weights
averaged over the last steps. In an early part the encoder learnt alone. {history}

The data: {utterances:,} utterances by espeak-ng in {voices} of its voices and {random_variants} made at random from
them, in 7 accents, and all other sounds synthesised with NumPy as training went. The encoder had helpers that are not
in the files: word-level CTC; which word or beep there is at each moment, and its number in the clip, where that is
known; heads for the kind of sound, the count and the sex.

Made with Python {python}, torch {torch}, transformers {transformers}, NumPy {numpy}, {espeak}.

    python scripts/demo_checkpoint/train.py train --work WORK --minutes {budget:.0f} --bfloat16 --threads 2
    python scripts/demo_checkpoint/train.py evaluate --work WORK

A budget in minutes gives other weights on another machine; `--steps {steps}` fixes the number of steps instead.
Neither was run from the start to the end, so that they reach these figures is not proved.

## Licence

Apache-2.0, weights and tokenizer included.
"""

EXAMPLE_ANSWERS = {
    "caption": ["A man says: open the door.", "Three beeps.", *CAPTIONS.values()],
    "sound": list(SOUNDS.values()),
    "transcribe": ["open the door", "Nobody is speaking."],
    "count": ["No beeps.", "One beep.", "Five beeps."],
    "speaking": ["Yes, somebody is speaking.", "No, nobody is speaking."],
    "sex": ["The speaker is female.", "The speaker is male.", "Nobody is speaking."],
    "instruments": [*INSTRUMENTS.values(), "There are no instruments."],
}


def table(left: dict[str, str], right: dict[str, str]) -> str:
    """Rows of a table from two sets of figures."""
    return "\n".join(f"| {name} | {left.get(name, '-')} | {right.get(name, '-')} |" for name in left)


def missed_targets(figures: dict) -> str:
    """A sentence about every target that the measured figures miss."""
    missed = []
    for name, values in (("held-out clips", figures["held_out"]), ("clips of other tools", figures["other"])):
        for row, value in values.items():
            number = float(value.split()[0])
            error = row.startswith("Word error rate")
            if (number > 10) if error else (number < 95 and row.startswith(("Events", "Beeps", "Caption of beeps"))):
                missed.append(f"{row}: {value} ({name})")
    if not missed:
        return "All targets above were met on both sets."
    return "Targets missed:\n\n" + "\n".join(f"- {line}" for line in missed)


def write_card(folder: Path, work: Path, figures: dict, seed: int) -> None:
    """Write README.md of the checkpoint."""
    state = torch.load(work / "snapshot.pt", weights_only=True)
    note = work / "history.txt"
    size = (folder / "model.safetensors").stat().st_size
    card = CARD.format(
        parameters=sum(t.numel() for t in state["average"].values()) / 1e6,
        megabytes=size / 1e6,
        tasks="\n".join(
            f"| {task} | {' / '.join(f'`{q}`' for q in QUESTIONS[task])} | {' / '.join(EXAMPLE_ANSWERS[task])} |"
            for task in QUESTIONS
        ),
        digits=", ".join(DIGITS),
        commands=", ".join(COMMANDS),
        sounds=SOUND_LIST,
        targets=TARGETS,
        held_out_variants=", ".join(HELD_OUT_VARIANTS),
        held_out_accents=", ".join(HELD_OUT_ACCENTS),
        figures=table(figures["held_out"], figures["other"]),
        kinds=table(figures["held_out_kinds"], figures["other_kinds"]),
        missed=missed_targets(figures),
        noise=CAPTIONS["noise"],
        seed=seed,
        steps=state["step"],
        batch=state["batch_size"],
        questions=QUESTIONS_PER_CLIP,
        minutes=state["elapsed"] / 60,
        budget=state["step"] * state["batch_size"] / CLIPS_PER_SECOND / 60,
        speed=CLIPS_PER_SECOND,
        learning_rate=state["learning_rate"],
        history=note.read_text().strip() if note.exists() else "",
        voices=len([v for v in (*FEMALE, *MALE, *UNSEXED) if v not in HELD_OUT_VARIANTS]),
        utterances=UTTERANCES["train"] + UTTERANCES["variants"],
        random_variants=NUM_RANDOM_VARIANTS,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        numpy=np.__version__,
        espeak=subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True).stdout.split("  ")[0],
    )
    (folder / "README.md").write_text(card)
