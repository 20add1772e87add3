"""Talk with a model over WebRTC: speak, hear the answer, interrupt it. Needs `pip install "mindone_audio[fastrtc]"`.

    python examples/fastrtc_voice_chat.py
    python examples/fastrtc_voice_chat.py --model fixie-ai/ultravox-v0_5-llama-3_2-1b \\
        --speaker microsoft/speecht5_tts --vocoder microsoft/speecht5_hifigan --voice voice.npy

Open the address that it prints; a browser gives the microphone to localhost and to https only. Without a speaker the
answers are text beside the sound. `mindone-audio serve` has a page with the same conversation, without FastRTC.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

from mindone_audio import pipeline  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402
from mindone_audio.voice import ConversationSettings  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hugging Face id (default: the small bundled one)")
    parser.add_argument("--question", help="words beside each spoken turn (bundled model: What does the person say?)")
    parser.add_argument("--speaker", help="a model that speaks the answers, such as microsoft/speecht5_tts")
    parser.add_argument("--vocoder", help="of the speaker, such as microsoft/speecht5_hifigan")
    parser.add_argument("--voice", help="of the speaker: a .npy or .safetensors file with an x-vector")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--port", type=int, default=7860)
    return parser.parse_args()


def show(history: str, event) -> str:
    """What was said, as it becomes known."""
    lines = {"FinalText": "you", "AnswerDone": "answer", "Interrupted": "answer, interrupted"}
    who = lines.get(type(event).__name__)
    return history + f"{who}: {event.text}\n" if who else history


def main() -> int:
    arguments = parse_arguments()
    import gradio  # comes with the extra fastrtc
    from fastrtc import Stream

    from mindone_audio.voice import fastrtc_handler

    speaker = None
    if arguments.speaker:
        sound = {"vocoder": arguments.vocoder, "voice": arguments.voice}
        speaker = pipeline("text-to-speech", arguments.speaker, device=arguments.device, **sound)
    pipe = pipeline(model=arguments.model, device=arguments.device)
    question = arguments.question or ("" if arguments.model else "What does the person say?")
    settings = ConversationSettings(transcribe=True, question=question)
    text = gradio.Textbox(label="What was said", lines=12)
    stream = Stream(
        fastrtc_handler(pipe, settings, speaker=speaker),
        modality="audio",
        mode="send-receive",
        concurrency_limit=4,
        additional_inputs=[text],
        additional_outputs=[text],
        additional_outputs_handler=show,
    )
    stream.ui.launch(server_name="127.0.0.1", server_port=arguments.port)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {in_words(error, option)}")
