"""The one exception for bad input, so that every message has the same form, and what a message can suggest."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

MOST = 900  # characters in a line of a message


class InputError(ValueError):
    """A value that the user gave cannot be used; the message names it and says what to do, in lines of no great length.

    Most messages are one line; where there are several routes to a data set, each has one.
    """

    def __init__(self, message: str) -> None:
        kept = 2 * MOST // 3
        lines = message.split("\n")
        cut = [line if len(line) <= MOST else f"{line[:kept]}...{line[kept + 3 - MOST :]}" for line in lines]
        super().__init__("\n".join(cut))


class _Short(reprlib.Repr):
    """What a message shows of a value: its repr, with an ellipsis where it is long, deep or wide."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 300, 300
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write more than 4,300 digits; log10(2) = 0.30103.
        digits = int(abs(value).bit_length() * 0.30103)
        return repr(value) if digits < 40 else f"(an int of about {digits} digits)"


shown = _Short().repr


def bad_input(name: str, value: object, remedy: str) -> InputError:
    """Return an `InputError` that reads "name = value: remedy"; of a long value only its ends."""
    return InputError(f"{name} = {shown(value)}: {remedy}")


def require(right: object, name: str, value: object, remedy: str) -> None:
    """Raise the `InputError` of `bad_input` unless `right` is true."""
    if not right:
        raise bad_input(name, value, remedy)


@contextmanager
def within(where: str) -> Iterator[None]:
    """Within: an `InputError` that is raised says at its end where the value stands."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} [{where}]") from None


def closest(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a hint that names the closest known word, after the text `before`; nothing where none is close."""
    text = name if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(text[:100], [word[:100] for word in islice(known, 1000)], n=1, cutoff=0.5)
    return f"{before}did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, and all of them where none is close."""
    known = list(known)
    return closest(name, known) or f"known are {listed(known) or 'none'}"


def listed(words: Iterable[object], most: int = 40) -> str:
    """Return words with commas between them; of many the first and how many more there are."""
    words = list(words)
    first = ", ".join(word if isinstance(word, str) and len(word) < 60 else shown(word) for word in words[:most])
    return first + (f" and {len(words) - most} more" if len(words) > most else "")
