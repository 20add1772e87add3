"""The questions of the demo checkpoint, and the one right answer that a clip's label gives to each of them."""

from demo_checkpoint.home import call_of
from demo_checkpoint.sounds import Label

QUESTIONS = {
    "caption": (
        "Generate the caption in English:",
        "Describe this audio.",
        "Describe the audio.",
        "Describe the sound.",
        "Describe this clip in one sentence.",
        "What is in this recording?",
        "What can you hear?",
        "What do you hear?",
        "Write a caption for this audio.",
        "Caption this clip.",
        "What is happening in this audio?",
    ),
    "sound": (
        "What's that sound?",
        "What is that sound?",
        "What sound is this?",
        "What is this sound?",
        "What kind of sound is it?",
        "Identify the sound.",
        "Name the sound.",
        "Which sound do you hear?",
    ),
    "transcribe": (
        "What does the person say?",
        "Transcribe the speech.",
        "Transcribe the audio.",
        "Transcribe this audio.",
        "Write down what is said.",
        "What is the speaker saying?",
        "What did the speaker say?",
        "What words are spoken?",
        "Generate the transcription:",
        "Transcribe the audio into text.",
    ),
    "count": (
        "How many beeps do you hear?",
        "How many beeps are there?",
        "Count the beeps.",
        "How many beeps can you hear?",
        "How many times does it beep?",
        "What is the number of beeps?",
    ),
    "speaking": (
        "Is anybody speaking?",
        "Is anyone speaking?",
        "Is somebody speaking?",
        "Is there speech in this audio?",
        "Does anybody speak?",
        "Do you hear a voice?",
        "Is someone talking?",
    ),
    "sex": (
        "Is the speaker male or female?",
        "Is the speaker a man or a woman?",
        "What is the gender of the speaker?",
        "Who is speaking, a man or a woman?",
        "Is it a male or a female voice?",
        "Tell me the speaker's gender.",
    ),
    "instruments": (
        "What instruments can you hear in this audio?",
        "What instruments can you hear?",
        "Which instrument is playing?",
        "What instrument is this?",
        "Which instruments do you hear?",
        "Name the instruments.",
    ),
    "command": (
        "Which command is this? Answer in JSON.",
        "What is the command? Answer in JSON.",
        "Turn the command into JSON.",
        "Which call of the home is this? Answer in JSON.",
        "What should the home do? Answer in JSON.",
        "Write the spoken command as JSON.",
    ),
}
TASKS = tuple(QUESTIONS)

NUMBERS = ("no", "one", "two", "three", "four", "five")
NOBODY = "Nobody is speaking."
CANNOT_MAKE_OUT = "Somebody says something that I cannot make out."
QUOTED_WORDS = 8  # that a caption repeats at most
CAPTIONS = {
    "siren": "A siren is wailing.",
    "alarm": "An alarm is ringing.",
    "noise": "Steady noise, like rain.",
    "knock": "Somebody is knocking.",
    "click": "Something is clicking.",
    "pluck": "A string is plucked.",
    "chord": "A piano plays a chord.",
    "drum": "A drum is playing.",
    "whistle": "Somebody is whistling.",
    "engine": "An engine is humming.",
    "glass": "Glass is breaking.",
    "silence": "There is silence.",
    "unclear": CANNOT_MAKE_OUT,
    "unknown": "There is a sound that I do not know.",
}
SOUNDS = {
    "speech": "It is a person speaking.",
    "beep": "It is beeping.",
    "siren": "It is a siren.",
    "alarm": "It is an alarm.",
    "noise": "It is rain or noise.",
    "knock": "It is knocking.",
    "click": "It is clicking.",
    "pluck": "It is a plucked string.",
    "chord": "It is a piano.",
    "drum": "It is a drum.",
    "whistle": "It is whistling.",
    "engine": "It is an engine.",
    "glass": "It is breaking glass.",
    "silence": "There is no sound.",
    "unclear": "It is a person speaking.",
    "unknown": "It is a sound that I do not know.",
}
INSTRUMENTS = {"pluck": "A plucked string.", "chord": "A piano.", "drum": "A drum."}


def answer(task: str, label: Label) -> str | None:
    """The right answer, or None where the question should not be asked of this clip (a voice of unclear sex)."""
    speech = label.kind in ("speech", "unclear")
    if label.kind == "speech" and not label.sex and task == "caption" or speech and not label.sex and task == "sex":
        return None
    if task == "instruments" and label.kind == "unknown":  # it may be one
        return None
    if task == "caption":
        if label.kind == "speech":
            words = label.text.split()
            quoted = label.text if len(words) <= QUOTED_WORDS else f"{' '.join(words[:QUOTED_WORDS])} .."
            return f"A {'man' if label.sex == 'male' else 'woman'} says: {quoted}."
        if label.kind == "beep":
            return f"{beeps(label.count)}."
        return CAPTIONS[label.kind]
    if task == "sound":
        return SOUNDS[label.kind]
    if task == "transcribe":
        return {"speech": label.text, "unclear": CANNOT_MAKE_OUT}.get(label.kind, NOBODY)
    if task == "command":
        return call_of(label.text if label.kind == "speech" else "")
    if task == "count":
        return f"{beeps(label.count)}."
    if task == "speaking":
        return "Yes, somebody is speaking." if speech else "No, nobody is speaking."
    if task == "sex":
        return f"The speaker is {label.sex}." if speech else NOBODY
    if task == "instruments":
        return INSTRUMENTS.get(label.kind, "There are no instruments.")
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def beeps(count: int) -> str:
    """ "No beeps", "One beep", "Two beeps", ..."""
    return f"{NUMBERS[count].capitalize()} beep{'' if count == 1 else 's'}"
