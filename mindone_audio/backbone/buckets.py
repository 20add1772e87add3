"""Lengths that graphs are compiled for, where an input may have any length."""


def bucket(length: int, smallest: int) -> int:
    """The first of smallest, 1.5 * smallest, 2 * smallest, 3 * smallest, 4 * smallest, ... that is enough.

    Two graphs for each doubling, of which at most a third is padding from the second length on. smallest is even.
    """
    size = smallest
    while size < length:
        if size + size // 2 >= length:
            return size + size // 2
        size *= 2
    return size


def buckets(longest: int, smallest: int) -> list[int]:
    """All that `bucket` gives for lengths up to `longest`, in ascending order."""
    found = [bucket(1, smallest)]
    while found[-1] < longest:
        found.append(bucket(found[-1] + 1, smallest))
    return found
