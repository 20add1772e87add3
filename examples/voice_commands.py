"""Turn spoken commands into calls that a program can act on: a small home with a door, a light and a radio.

    python examples/voice_commands.py
    python examples/voice_commands.py --model mistralai/Voxtral-Mini-3B-2507 command.wav

The answer follows a JSON schema, so each one is a call that the home has: a door that opens or closes, a light and a
radio that turn on or off. Without arguments it listens to the two bundled commands with the small bundled checkpoint,
which knows these words. A model that must give a call gives one whatever it hears, so `heard` is asked for first, and a
clip in which nobody speaks gives no call.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

from mindone_audio import pipeline  # noqa: E402

CLIPS = [ROOT / "examples" / "audio" / name for name in ("spoken_command.wav", "speech_in_noise.wav")]
QUESTION = "What is said?"
STATES = {"open": "open", "close": "closed", "turn on": "on", "turn off": "off"}


def call(actions: list[str], devices: list[str]) -> dict:
    """The schema of calls that do one of these actions with one of these devices."""
    return {
        "type": "object",
        "properties": {"action": {"enum": actions}, "device": {"enum": devices}},
        "required": ["action", "device"],
        "additionalProperties": False,
    }


CALLS = {"anyOf": [call(["open", "close"], ["door"]), call(["turn on", "turn off"], ["light", "radio"])]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", default=CLIPS, metavar="CLIP", help="default: the two bundled commands")
    parser.add_argument("--model", help="folder or Hugging Face id (default: the bundled one)")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    arguments = parser.parse_args()
    try:
        pipe = pipeline(model=arguments.model, device=arguments.device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    home, failed = {"door": "closed", "light": "off", "radio": "on"}, 0
    for clip in map(str, arguments.clips):
        try:
            heard = pipe(clip, task="transcribe")["generated_text"]
            asked = json.loads(pipe(clip, text=QUESTION, json_schema=CALLS)["generated_text"]) if heard else None
        except (OSError, ValueError) as error:
            print(f"error: {clip}: {error}", file=sys.stderr)
            failed = 1
            continue
        if asked is not None:
            home[asked["device"]] = STATES[asked["action"]]
        print(json.dumps({"clip": Path(clip).name, "heard": heard, "call": asked, "home": home}, ensure_ascii=False))
    return failed


if __name__ == "__main__":
    sys.exit(main())
