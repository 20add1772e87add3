"""SpeechT5 (arXiv 2110.07205): text to speech in a voice that is given, and English speech to text."""

from mindone_audio.models.speecht5.processor import SpeechT5Processor
from mindone_audio.models.speecht5.speech_to_text import SpeechT5ForSpeechToText
from mindone_audio.models.speecht5.text_to_speech import SpeechT5ForTextToSpeech

CHECKPOINTS = ("microsoft/speecht5_tts", "microsoft/speecht5_asr")
PROVED = "float32 on CPU against transformers 4.57 (PyTorch, models, vocoder and processor), with small random models"

MODEL, PROCESSOR = SpeechT5ForTextToSpeech, SpeechT5Processor
# What config.json's `architectures` may say.
ARCHITECTURES = {
    "SpeechT5ForTextToSpeech": SpeechT5ForTextToSpeech,
    "SpeechT5ForSpeechToText": SpeechT5ForSpeechToText,
}
