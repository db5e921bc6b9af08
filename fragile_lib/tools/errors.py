"""The one exception for bad input, so that every message has the same form, and what a message can suggest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value that the user gave cannot be used; the message names it and says what to do."""


def bad_input(name: str, value: object, remedy: str) -> InputError:
    """Return an `InputError` that reads "name = value: remedy"."""
    return InputError(f"{name} = {value!r}: {remedy}")


def require(right: object, name: str, value: object, remedy: str) -> None:
    """Raise the `InputError` of `bad_input` unless `right` is true."""
    if not right:
        raise bad_input(name, value, remedy)


def closest(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a hint that names the closest known word, after the text `before`; nothing where none is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"{before}did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, and all of them where none is close."""
    known = list(known)
    return closest(name, known) or f"known are {', '.join(known) or 'none'}"
