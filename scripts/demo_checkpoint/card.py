"""Writes the model card of the demo checkpoint from its measured figures and from the tables that made its data."""

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

from demo_checkpoint.prompts import QUESTIONS_PER_CLIP
from demo_checkpoint.questions import CANNOT_MAKE_OUT, CAPTIONS, INSTRUMENTS, QUESTIONS, QUOTED_WORDS, SOUNDS
from demo_checkpoint.speech import HELD_OUT_ACCENTS, HELD_OUT_VARIANTS, UTTERANCES

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: audio-text-to-text
tags: [audio, qwen2_audio, demo]
---

# Qwen2-Audio demo checkpoint

A small Qwen2-Audio ({parameters:.1f} million parameters, {megabytes:.1f} MB in bfloat16), so that the library can be
tried and tested offline with answers that depend on the clip. It hears with the encoder of OpenAI's Whisper tiny.en,
unchanged, and answers with a decoder of {decoder:.1f} million parameters that was trained for it. It has the tensor
names, the processor and the prompts of Qwen/Qwen2-Audio-7B and Qwen/Qwen2-Audio-7B-Instruct, and none of their
knowledge.

## What it does

It hears one clip of at most 30 s (16 kHz, mono) and answers eight kinds of question about it, in English:

| task | ask it | answers |
|---|---|---|
{tasks}

Both prompt formats work: the raw one of the base model, `<|audio_bos|><|AUDIO|><|audio_eos|>QUESTION`, and the chat
template of the instruct model. It stops by itself (`<|endoftext|>` or `<|im_end|>`).

- Speech: any English, best in short sentences, written in lower case without punctuation, numbers as words. A caption
  quotes at most {quoted} words of it.
- Commands of a small home (lights, door, radio, timer, volume) as JSON; `{{"action": "none"}}` for any other speech.
- Sounds: beeps (one to five), a siren, an alarm, noise or rain, knocks, clicks, a plucked string, a piano chord, drums,
  a whistle, an engine, breaking glass, silence.
- Of speech that it cannot write down it says "{cannot}", of another sound "{unknown}"

## Figures

Greedy `generate` on these files (bfloat16 on disk, computed in float32).

*Held out*: clips synthesised as in training, but with espeak-ng voices ({held_out_variants}, and the accent
{held_out_accents}), synthesis parameters, noise and levels that training never used. *Other tools*: clips that `sox`
made, and espeak-ng's own files in held-out voices, then encoded by ffmpeg as wav, mp3 or ogg at 8 to 44.1 kHz, mono or
stereo. Both are the sets of the checkpoint before this one, with its figures beside. An answer counts if it is right
letter by letter.

{kept}

*Real recordings*: {recordings} recordings of people and things, which are neither in this repository nor in the
training (`real_evaluation.py` defines each measure).

{real}

## What it still cannot do

{limits}

## How it was made

`scripts/demo_checkpoint/train.py` in the library's repository, seed {seed}: {steps} steps of {batch} clips, up to
{questions} questions each, in {minutes:.0f} minutes on two CPU cores; every clip is encoded once and drawn {draws}
times. AdamW (peak {learning_rate:g}, warm-up, cosine), weights averaged over the last steps. A helper that is not in
the files taught the lower layers by CTC which word is heard where. {history}

The data: {utterances:,} utterances by espeak-ng, flite, SVOX Pico and piper (voice "joe"), saying single words,
commands, numbers and sentences of WordNet, Moby Dick and the State of the Union addresses; recordings of Debian
packages (the dialogue of Flight of the Amazon Queen, John Passfield and Steven Stamatiadis, and of Beneath a Steel Sky,
Revolution Software, both free to distribute and to modify, with the words that Whisper tiny.en hears; the prompts of
Asterisk by Allison Smith and others, CC BY-SA and CC BY; sounds and words of Tux Paint and
KLettres, GPL; Oxygen's sounds, LGPL; instruments of the Fluid soundfont, MIT); other languages by espeak-ng and Pico;
all other sounds synthesised with NumPy as training went.

Made with Python {python}, torch {torch}, transformers {transformers}, NumPy {numpy}, {espeak}.

## Licence

Apache-2.0, the decoder's weights and the tokenizer included. The encoder's weights are those of Whisper tiny.en,
Copyright (c) 2022 OpenAI, MIT licence: https://github.com/openai/whisper/blob/main/LICENSE
"""

EXAMPLE_ANSWERS = {
    "caption": ["A man says: open the door.", "Three beeps.", *CAPTIONS.values()],
    "sound": list(SOUNDS.values()),
    "transcribe": ["open the door", "Nobody is speaking."],
    "count": ["No beeps.", "One beep.", "Five beeps."],
    "speaking": ["Yes, somebody is speaking.", "No, nobody is speaking."],
    "sex": ["The speaker is female.", "The speaker is male.", "Nobody is speaking."],
    "command": ['{"action": "open", "device": "door"}', '{"action": "set", "device": "timer", "minutes": 5}'],
    "instruments": [*INSTRUMENTS.values(), "There are no instruments."],
}


def write_card(folder: Path, work: Path, kept: str, real: str, recordings: int, seed: int) -> None:
    """Write README.md of the checkpoint; `kept` and `real` are Markdown tables of figures."""
    state = torch.load(work / "snapshot.pt", weights_only=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        sizes = {name: np.prod(file.get_slice(name).get_shape()) for name in file.keys()}
    notes = {name: work / f"{name}.txt" for name in ("history", "limits")}
    card = CARD.format(
        parameters=sum(sizes.values()) / 1e6,
        decoder=sum(size for name, size in sizes.items() if not name.startswith("audio_tower")) / 1e6,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        tasks="\n".join(
            f"| {task} | {' / '.join(f'`{q}`' for q in QUESTIONS[task])} | {' / '.join(EXAMPLE_ANSWERS[task])} |"
            for task in QUESTIONS
        ),
        quoted=QUOTED_WORDS,
        cannot=CANNOT_MAKE_OUT,
        unknown=CAPTIONS["unknown"],
        held_out_variants=", ".join(HELD_OUT_VARIANTS),
        held_out_accents=", ".join(HELD_OUT_ACCENTS),
        kept=kept,
        real=real,
        recordings=recordings,
        seed=seed,
        steps=state["step"],
        batch=state["batch_size"],
        draws=state["draws"],
        questions=QUESTIONS_PER_CLIP,
        minutes=state["elapsed"] / 60,
        learning_rate=state["learning_rate"],
        utterances=sum(size for part, size in UTTERANCES.items() if not part.startswith(("heldout", "foreign"))),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        numpy=np.__version__,
        espeak=subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True).stdout.split("  ")[0],
        **{name: path.read_text().strip() if path.exists() else "" for name, path in notes.items()},
    )
    (folder / "README.md").write_text(card)
