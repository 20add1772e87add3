"""Measure this package against transformers on PyTorch: same checkpoint, clip, tokens, threads and dtype (fp32).

    python scripts/benchmark.py generate                      # the bundled demo checkpoint
    python scripts/benchmark.py generate --random small       # 12 + 12 layers of 512, random weights
    python scripts/benchmark.py generate --model DIR --audio clip.wav --prompt "What do you hear?" --json out.json
    python scripts/benchmark.py generate --random small --filled 512 1024 2048 4096 8192 --plot long.png
    python scripts/benchmark.py start                         # first answer, imports, compilations
    python scripts/benchmark.py load --size 1.7b --mindone    # from the disk to parameters
    python scripts/benchmark.py batch --clips 64              # a batch job against one clip after the other
    python scripts/benchmark.py features                      # log-mels
    python scripts/benchmark.py finetune --random small       # LoRA steps, and memory by the length of the prompts
    python scripts/benchmark.py serve --against "transformers serve" --peer PYTHON   # a server and its clients
    python scripts/benchmark.py constrained                   # an answer that must follow a JSON schema
    python scripts/benchmark.py lookup                        # prompt lookup, and token by token
    python scripts/benchmark.py real --text-model DIR --audio-model DIR   # published weights: first token, memory
    python scripts/benchmark.py long-audio --family voxtral   # minutes of audio: first token, memory
    python scripts/benchmark.py whisper --random large-v3-turbo   # a window of 30 s
    python scripts/benchmark.py transcribe --model DIR --speech FILE...   # Whisper, minutes of real speech
    python scripts/benchmark.py tts                           # SpeechT5 and its vocoder
    python scripts/benchmark.py readme                        # all that docs/performance.md shows, and its table

Machines are shared and noisy, so an absolute time says little. Every contender lives in a process of its own, all of
them take turns within a round, and what counts is the median over the rounds of the ratio within a round. Needs
PyTorch (tests/requirements.txt).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # processes that are started import this file again

from benchmark.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
