"""One declared parameter: its type, its range, its meaning; and the check of a value against them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fragile_lib.tools.errors import InputError, bad_input

SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
BOUNDS = {"min": "at least", "max": "at most", "above": "above", "below": "below"}
CONSTRAINTS = {
    "int": {"min", "max", "above", "below", "choices"},
    "float": {"min", "max", "above", "below"},
    "str": {"choices"},
    "bool": set(),
    "list": {"of", "min", "max", "above", "below", "choices", "min_length", "unique"},
}


def closest(name: str, known: Iterable[str], before: str = "") -> str:
    """Return a hint that names the closest known word, after the text `before`; nothing where none is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"{before}did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known word, and all of them where none is close."""
    known = list(known)
    return closest(name, known) or f"known are {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class Declaration:
    """A parameter of a notebook, as `parameters:` of its YAML file states it."""

    name: str
    type: str
    of: str | None = None
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    min_length: int = 0
    unique: bool = False
    help: str = ""

    @property
    def wanted(self) -> str:
        """Say what a right value is, for messages."""
        element = self.of if self.type == "list" else self.type
        limits = [f"{word} {getattr(self, key):g}" for key, word in BOUNDS.items() if getattr(self, key) is not None]
        if self.choices:
            limits.append("one of " + ", ".join(map(str, self.choices)))
        if self.type == "list":
            limits.append("without repeats" if self.unique else "")
            limits.append(f"{self.min_length} or more of them" if self.min_length else "")
            element = f"list of {element}"
        article = "an" if element == "int" else "a"
        return f"{article} " + ", ".join(filter(None, [element, *limits])) + (f" ({self.help})" if self.help else "")

    def check(self, value: Any, where: str = "") -> Any:
        """Return `value` as a built-in type (an int becomes a float where one is declared); raise InputError else."""
        where = f" [{where}]" if where else ""
        if self.type != "list":
            return self._scalar(self.name, self.type, value, where)
        if not isinstance(value, (list, tuple)):
            raise bad_input(self.name, value, f"give {self.wanted}{where}")
        assert self.of is not None
        values = [self._scalar(f"{self.name}[{i}]", self.of, element, where) for i, element in enumerate(value)]
        if len(values) < self.min_length:
            raise bad_input(self.name, value, f"is too short; give {self.wanted}{where}")
        if self.unique and len(set(values)) < len(values):
            raise bad_input(self.name, value, f"repeats a value; give {self.wanted}{where}")
        return values

    def _scalar(self, name: str, kind: str, value: Any, where: str) -> Any:
        # bool is a subclass of int in Python, so types are compared exactly: `depth: true` is a mistake.
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is not SCALARS[kind]:
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if kind == "float" and _is_number_text(value) else ""
            raise bad_input(name, value, f"is {_kind(value)}; give {self.wanted}{hint}{where}")
        if kind == "float" and not math.isfinite(value):
            raise bad_input(name, value, f"is not finite; give {self.wanted}{where}")
        if self.choices and value not in self.choices:
            hint = did_you_mean(value, self.choices) if kind == "str" else ""
            raise bad_input(name, value, f"is not a choice; give {self.wanted}{'; ' + hint if hint else ''}{where}")
        outside = (
            (self.min is not None and value < self.min)
            or (self.max is not None and value > self.max)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )
        if outside:
            raise bad_input(name, value, f"is out of range; give {self.wanted}{where}")
        return value


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _is_number_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def declare(name: str, content: Any, where: str) -> Declaration:
    """Return the declaration that one entry of `parameters:` holds; raise InputError where it is not well formed."""
    label = f"parameters.{name}"
    if not name.isidentifier() or hasattr(dict, name):
        raise bad_input(label, content, f"the name must be a Python identifier and no method of dict [{where}]")
    if not isinstance(content, dict):
        raise bad_input(label, content, f"give its type and meaning, like {{type: int, min: 1, help: ...}} [{where}]")
    kind = content.get("type")
    if kind not in CONSTRAINTS:
        raise bad_input(f"{label}.type", kind, f"give one of {', '.join(CONSTRAINTS)} [{where}]")
    allowed = CONSTRAINTS[kind] | {"type", "help"}
    for key in content:
        if key not in allowed:
            remedy = f"does not apply to {kind}; {did_you_mean(key, allowed)} [{where}]"
            raise bad_input(f"{label}.{key}", content[key], remedy)
    if kind == "list" and content.get("of") not in SCALARS:
        raise bad_input(f"{label}.of", content.get("of"), f"give the element type: {', '.join(SCALARS)} [{where}]")
    for key in BOUNDS:
        if key in content and (type(content[key]) not in (int, float) or not math.isfinite(content[key])):
            raise bad_input(f"{label}.{key}", content[key], f"give a finite number [{where}]")
    choices = content.get("choices")
    if "choices" in content and (not isinstance(choices, list) or not choices):
        raise bad_input(f"{label}.choices", choices, f"give a list of at least one value [{where}]")
    if type(content.get("min_length", 0)) is not int or type(content.get("unique", False)) is not bool:
        raise bad_input(label, content, f"min_length is an int, unique true or false [{where}]")
    if not isinstance(content.get("help"), str):
        raise bad_input(f"{label}.help", content.get("help"), f"say in a few words what it means [{where}]")
    return Declaration(name=name, **{**content, "choices": tuple(choices) if choices else None})


def check_values(
    declarations: dict[str, Declaration], values: dict[str, Any], where: str, complete: bool = True
) -> dict[str, Any]:
    """Return `values` checked, in the order of the declarations; raise InputError for an unknown or missing name."""
    for name, value in values.items():
        if name not in declarations:
            raise bad_input(name, value, f"is not a parameter; {did_you_mean(name, declarations)} [{where}]")
    missing = [name for name in declarations if name not in values]
    if complete and missing:
        declaration = declarations[missing[0]]
        raise InputError(f"{missing[0]} = (missing): give {declaration.wanted} [{where}]")
    return {name: declarations[name].check(values[name], where) for name in declarations if name in values}
