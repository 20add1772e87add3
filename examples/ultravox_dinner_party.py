"""A spoken dialogue of two turns with Ultravox: plan a dinner party, and answer what the model asks back.

    python examples/ultravox_dinner_party.py --audio party.wav --audio budget.wav
    python examples/ultravox_dinner_party.py --model fixie-ai/ultravox-v0_5-llama-3_1-8b --audio party.wav

The clips are what a person says one after the other, such as "Hi there, can you help me plan a dinner party for 8
people?". They are heard as a microphone would bring them, 20 ms at a time: the conversation finds where each ends,
answers it, and keeps both in its history.
"""

import argparse
import queue
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import numpy as np  # noqa: E402

from mindone_audio import load_audio, pipeline  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402
from mindone_audio.voice import Conversation, ConversationSettings, VoiceModel  # noqa: E402
from mindone_audio.voice.events import AnswerDone, AnswerText, Failed, SpeechStopped  # noqa: E402

FRAME = 320  # samples, 20 ms
SILENCE = np.zeros(16_000, np.float32)  # behind a clip, by which its turn ends


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fixie-ai/ultravox-v0_5-llama-3_2-1b", help="folder or Hugging Face id")
    parser.add_argument("--audio", action="append", required=True, metavar="CLIP", help="one turn; repeatable")
    parser.add_argument("--system", default="You are a friendly and helpful planner.", help="what the model is told")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    clips = [load_audio(clip) for clip in arguments.audio]
    model = VoiceModel.of(pipeline(model=arguments.model, device=arguments.device))
    settings = ConversationSettings(system=arguments.system, generate={"max_new_tokens": arguments.max_new_tokens})
    events: queue.SimpleQueue = queue.SimpleQueue()
    with Conversation(model, events.put, settings) as talk:
        for clip in clips:
            sound = np.concatenate([SILENCE, clip, SILENCE])
            for start in range(0, len(sound), FRAME):
                talk.hear(sound[start : start + FRAME])
            while not isinstance(event := events.get(timeout=600), AnswerDone):
                if isinstance(event, SpeechStopped):
                    print(f"[heard {(event.end_ms - event.start_ms) / 1000:.1f} s]")
                elif isinstance(event, AnswerText):
                    print(event.text, end="", flush=True)
                elif isinstance(event, Failed):
                    raise event.error
            print()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError, queue.Empty) as error:
        sys.exit(f"error: {in_words(error, option)}")
