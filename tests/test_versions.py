"""The order of versions, and ranges of them."""

import random
import string

import pytest

from mindone_audio.machine.versions import in_ranges, version_key

# Strings that installers, npu-smi and package registries really use, each list from the oldest to the newest.
ORDERED = [
    [
        "24.1.RC1",
        "24.1.rc2.2",
        "24.1.RC3.b080",
        "24.1.0",
        "24.1.0.1",
        "25.0.RC1",
        "25.0.rc1.1",
        "25.2.0",
        "25.3.RC1",
        "25.5.0",
    ],
    ["25.5.0", "25.6.rc1.b143", "26.0.RC1"],
    ["7.6.0.1.220", "7.7.T20.0.B210", "7.7.0.1.231", "8.0.T63", "8.0.RC3", "8.0.0", "8.1.RC1.beta1", "8.1.RC1"],
    ["8.1.RC1", "8.2.RC1.alpha003", "8.2.RC1.B150", "8.2.0.0.201", "8.3.RC1", "8.5.T8.0.B060", "8.5.0.alpha002"],
    ["8.5.0.alpha002", "8.5.0", "8.5.0.2.220", "9.0.0", "9.1", "9.2.0-beta.2", "9.2.0"],
    ["9.0.T1", "9.0.RC1.alpha001", "9.0.RC1.beta1", "9.0.RC1", "9.0.RC1.1", "9.0.RC2.alpha001", "9.0.RC2", "9.0.0"],
    ["9.0.0.T1", "9.0.0.alpha1", "9.0.0.beta1", "9.0.0.RC1", "9.0.0"],
    ["2.6.0", "2.6.0.post1", "2.7.0.dev20250101", "2.7.0a1", "2.7.0b1", "2.7.0rc1", "2.7.0rc2", "2.7.0", "2.7.1"],
    ["2.7.2", "2.8.0", "2.9.0", "2.10.0", "2.11"],
    ["1.26.4", "2.0.0rc1", "2.0"],
]


@pytest.mark.parametrize("names", ORDERED, ids=lambda names: names[0])
def test_order_of_versions(names):
    keys = [version_key(name) for name in names]
    assert None not in keys
    assert all(older < newer for older, newer in zip(keys, keys[1:])), keys


@pytest.mark.parametrize(
    "one, other",
    [
        ("25.0.RC1", "25.0.rc1"),
        ("8.2.RC1.B150", "8.2.RC1"),
        ("24.1.RC3.b080", "24.1.rc3"),
        ("9.1", "9.1.0"),
        ("8.5.0.alpha002", "8.5.0-alpha.2"),
        ("2.7.0+cpu", "2.7.0"),
        (" 8.5.0\n", "8.5.0"),
    ],
)
def test_the_same_version_written_differently(one, other):
    assert version_key(one) == version_key(other) is not None


@pytest.mark.parametrize(
    "text",
    ["", "master", "V100R001", "V100R001C21SPC002B220", "[V100R001C17]", "7.0.0,7.7.99", "CANN-1.83", "8", "8.", ".8"]
    + [
        "8..2",
        "8.2.RC1/8.3",
        "8.2.final",
        "1.2.3.4.5.6",
        "9" * 5000 + ".1",
        "1." + "9" * 5000,
        "٣.١",
        "8.2\x00",
        None,
        8.2,
    ],
)
def test_unknown_versions_are_none(text):
    assert version_key(text) is None


@pytest.mark.parametrize(
    "version, ranges, expected",
    [
        ("7.7.0.1.231", "[7.0.0,7.7.99]", True),
        ("7.7.99.1.231", "[7.0.0,7.7.99]", True),
        ("7.10.0.1.231", "[7.0.0,7.7.99]", False),  # numbers are not letters
        ("6.4.12.1.241", "[7.0.0,7.7.99]", False),
        ("6.4.12.1.241", "[6.4.0,6.4.99],[7.0.0,8.9.9]", True),
        ("6.9.0", "[6.4.0,6.4.99], [7.0.0, 8.9.9]", False),
        ("7.7.T20.0.B210", "[7.0.0,7.7.99]", True),
        ("25.0.rc1.1", "[24.1,24.1.],[25.0,25.0.]", True),
        ("25.2.0", "[24.1,24.1.],[25.0,25.0.]", False),
        ("23.0.RC3.1", "[23.0.rc3,23.0.rc3.]", True),
        ("23.0.rc3", "[23.0.0,23.0.0.]", False),
        ("master", "[7.0.0,7.7.99]", None),
        (None, "[7.0.0,7.7.99]", None),
        ("7.7.0", "[7.0.0,master]", None),
        ("7.7.0", "[V100R001C17],[V100R001C21]", None),
        ("7.7.0", "[7.0.0,7.7", None),
        ("7.7.0", "", None),
        ("7.7.0", None, None),
        ("7.7.0.b" + "9" * 5000, "[7.0.0,7.7.99]", True),
    ],
)
def test_ranges_of_versions(version, ranges, expected):
    assert in_ranges(version, ranges) is expected


def test_random_strings_never_crash():
    chance = random.Random(0)
    pieces = "8 25 0 . . . - _ RC1 rc alpha beta T B150 post dev + é".split() + [" ", "\n"]
    keys = []
    for _ in range(3000):
        text = "".join(chance.choices([*pieces, chance.choice(string.printable)], k=chance.randrange(1, 9)))
        keys += [version_key(text), version_key("8.5" + text)]
        in_ranges("8.5" + text, f"[7.0.0,8.{text}]")
    understood = {key for key in keys if key is not None}
    assert len(understood) > 50 and None in keys
    assert sorted(understood) == sorted(reversed(sorted(understood)))


def test_random_versions_are_ordered_as_their_numbers():
    chance = random.Random(1)
    numbers = [tuple(chance.randrange(30) for _ in range(3)) for _ in range(200)]
    assert sorted(numbers) == sorted(numbers, key=lambda number: version_key(".".join(map(str, number))))
