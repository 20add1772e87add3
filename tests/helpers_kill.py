"""A process that is killed at any step of writing, played in this one: after its end no operation does anything."""

import builtins
import io
import os
from collections.abc import Callable

import pytest

OPERATIONS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "open", "scandir")


class Killed(BaseException):
    """The end of the process."""


def kill_at_each_step(prepare: Callable[[], None], act: Callable[[], None], check: Callable[[], None], *more) -> int:
    """`act` is killed before its first operation on files, before its second, …, each time after `prepare`, and `check`
    looks at what is left; returns how many steps it has. more: (module, name) of other functions that write."""
    places = [*((os, name) for name in OPERATIONS), (builtins, "open"), (io, "open"), *more]
    for last in range(1, 1000):
        prepare()
        done = _run(act, places, last)
        check()
        if done < last:
            return done
    raise AssertionError("it never ends")


def _run(act: Callable[[], None], places: list, last: int) -> int:
    """How many operations were tried before the process was killed at number `last`, or ended."""
    done = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal done
            done += 1
            if done >= last:
                raise Killed
            return function(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, counted(getattr(module, name)))
        try:
            act()
        except Killed:
            pass
    return done
