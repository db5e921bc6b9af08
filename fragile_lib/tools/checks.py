"""Checks of single values that many doors share."""

from __future__ import annotations

from fragile_lib.tools.errors import bad_input


def check_count(name: str, value: object, optional: bool = False, least: int = 1) -> None:
    """Raise InputError for what is not a whole number of at least `least`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise bad_input(name, value, f"give a whole number of at least {least}")


def check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise InputError for what is not one of the known names."""
    if value not in known:
        raise bad_input(name, value, f"choose one of {', '.join(known)}")
