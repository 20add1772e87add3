"""The spoken commands of a small home, each with the JSON call that it stands for: lights, door, radio, timer, volume.

`CALLS` is every phrase that is taught, in the spoken form (lower case, no punctuation, numbers as words). Speech that
is not among them is no command.
"""

import json
import re
from itertools import product

from demo_checkpoint.texts import NUMBER_WORDS

NO_CALL = {"action": "none"}
TIMES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 45, 50, 60, 90)
LEVELS = tuple(range(11))

# What can be said for each call; {} is the name of the device or the number.
DEVICES = {
    "door": {"open": ("open {}", "open up {}", "unlock {}"), "close": ("close {}", "shut {}", "lock {}")},
    "light": {
        "turn on": ("turn on {}", "turn {} on", "switch on {}", "switch {} on", "put {} on", "{} on"),
        "turn off": ("turn off {}", "turn {} off", "switch off {}", "switch {} off", "put {} off", "{} off"),
    },
    "radio": {
        "turn on": ("turn on {}", "turn {} on", "switch on {}", "switch {} on", "play {}", "start {}", "{} on"),
        "turn off": ("turn off {}", "turn {} off", "switch off {}", "switch {} off", "stop {}", "{} off"),
    },
}
NAMES = {
    "door": ("the door", "the front door", "door"),
    "light": (
        "the light",
        "the lights",
        "the lamp",
        "lights",
        "light",
        "all lights",
        "all the lights",
        "the kitchen light",
    ),
    "radio": ("the radio", "the music", "radio", "some music", "music"),
}
VOLUME = {
    "turn up": ("turn up the volume", "turn the volume up", "volume up", "louder", "make it louder", "turn it up"),
    "turn down": (
        *("turn down the volume", "turn the volume down", "volume down", "quieter", "make it quieter"),
        "turn it down",
    ),
}
SET_VOLUME = ("volume {}", "set the volume to {}", "set volume to {}", "turn the volume to {}", "volume to {}")
SET_TIMER = ("set a timer for {}", "set the timer to {}", "set the timer for {}", "start a timer for {}", "timer {}")
STOP_TIMER = ("stop the timer", "cancel the timer", "turn off the timer", "clear the timer", "delete the timer")
POLITE = ("{}", "please {}", "{} please", "could you {}", "can you {}", "could you please {}", "can you {} please")


def _plain_calls() -> dict[str, dict]:
    """The phrases without a word of politeness."""
    calls = {}
    for device, actions in DEVICES.items():
        for action, phrases in actions.items():
            for phrase, name in product(phrases, NAMES[device]):
                calls[phrase.format(name)] = {"action": action, "device": device}
    for action, phrases in VOLUME.items():
        calls |= {phrase: {"action": action, "device": "volume"} for phrase in phrases}
    for phrase, level in product(SET_VOLUME, LEVELS):
        calls[phrase.format(NUMBER_WORDS[level])] = {"action": "set", "device": "volume", "level": level}
    for phrase, count, unit in product(SET_TIMER, TIMES, ("minute", "second", "hour")):
        if unit == "hour" and count > 12:
            continue
        spoken = f"{NUMBER_WORDS[count]} {unit}{'' if count == 1 else 's'}"
        calls[phrase.format(spoken)] = {"action": "set", "device": "timer", f"{unit}s": count}
    calls |= {phrase: {"action": "turn off", "device": "timer"} for phrase in STOP_TIMER}
    return calls


PLAIN_CALLS = _plain_calls()
CALLS = {frame.format(text): call for text, call in PLAIN_CALLS.items() for frame in POLITE}


def call_of(text: str) -> str:
    """The JSON call of a spoken text, or that of no command."""
    return json.dumps(CALLS.get(text, NO_CALL))


def random_command(rng) -> str:
    """A phrase of the home: each device as often as the others, one in three with a word of politeness."""
    device = ("door", "light", "radio", "timer", "volume")[rng.integers(5)]
    texts = _BY_DEVICE[device]
    text = texts[rng.integers(len(texts))]
    if rng.random() < 0.33:
        text = POLITE[rng.integers(len(POLITE))].format(text)
    return text


def near_command(rng) -> str:
    """A phrase that is like a command and is none: a device the home does not have, or an action that it cannot do."""
    frames = (
        "open {}",
        "close {}",
        "turn on {}",
        "turn off {}",
        "set {}",
        "play {}",
        "where is {}",
        "i like {}",
        "call {}",
    )
    things = ("window", "garden", "water", "kitchen", "oven", "car", "book", "computer", "bag", "house", "phone", "fan")
    text = frames[rng.integers(len(frames))].format(f"the {things[rng.integers(len(things))]}")
    return text if rng.random() < 0.7 else POLITE[rng.integers(len(POLITE))].format(text)


def _by_device() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text, call in PLAIN_CALLS.items():
        groups.setdefault(call["device"], []).append(text)
    return groups


_BY_DEVICE = _by_device()
WORDS_OF_HOME = sorted({word for text in CALLS for word in re.findall("[a-z]+", text)})
