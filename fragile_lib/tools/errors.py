"""The one exception for bad input, so that every message has the same form."""

from __future__ import annotations


class InputError(ValueError):
    """A value that the user gave cannot be used; the message names it and says what to do."""


def bad_input(name: str, value: object, remedy: str) -> InputError:
    """Return an `InputError` that reads "name = value: remedy"."""
    return InputError(f"{name} = {value!r}: {remedy}")
