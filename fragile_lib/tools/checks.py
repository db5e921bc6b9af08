"""Checks of single values that many doors share."""

from __future__ import annotations

from math import inf, isfinite
from numbers import Integral, Real

from fragile_lib.tools.errors import bad_input


def check_count(name: str, value: object, optional: bool = False, least: int = 1, most: float = inf) -> None:
    """Raise InputError for what is not a whole number of at least `least` and at most `most`."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        bounds = f"of at least {least}" if most == inf else f"from {least} to {most}"
        raise bad_input(name, value, f"give a whole number {bounds}")


def check_number(name: str, value: object, above: float | None = None, below: float = inf, why: str = "") -> None:
    """Raise InputError for what is no finite number, is below 0 or not `above` a bound, or not `below` one."""
    bound = "of at least 0" if above is None else f"above {above}"
    number = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) and value < below
    if not number or (value < 0 if above is None else value <= above):
        bound += "" if below == inf else f" and below {below}"
        raise bad_input(name, value, f"give a finite number {bound}{why and ': '}{why}")


def check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise InputError for what is not one of the known names."""
    if value not in known:
        raise bad_input(name, value, f"choose one of {', '.join(known)}")
