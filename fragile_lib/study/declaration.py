"""One parameter of a notebook: how its file declares it, and the check of a value."""

from __future__ import annotations

import operator
import re
import sys
from dataclasses import dataclass
from typing import Any

from fragile_lib.tools.errors import InputError, bad_input, did_you_mean, listed, require

NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")
SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
BOUNDS = {  # each with its words, and whether a value keeps to it
    "min": ("at least", operator.ge),
    "max": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}
CONSTRAINTS = {
    "int": {*BOUNDS, "choices"},
    "float": {*BOUNDS},
    "str": {"choices"},
    "bool": set(),
    "list": {*BOUNDS, "of", "choices", "min_length", "unique"},
}


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
        given = {words: getattr(self, key) for key, (words, _) in BOUNDS.items()}
        limits = [f"{words} {limit:g}" for words, limit in given.items() if limit is not None]
        limits += [f"one of {listed(self.choices)}"] if self.choices else []
        limits += ["without repeats"] if self.unique else []
        limits += [f"{self.min_length} or more of them"] if self.min_length else []
        element = f"list of {element}" if self.type == "list" else element
        article = "an" if element == "int" else "a"
        return f"{article} " + ", ".join([element, *limits]) + (f" ({self.help})" if self.help else "")

    def check(self, value: Any) -> Any:
        """Return `value` as a built-in type (an int becomes a float where one is declared); raise InputError else."""
        if self.type != "list":
            return self._scalar(self.name, self.type, value)
        if not isinstance(value, list | tuple):
            raise bad_input(self.name, value, f"give {self.wanted}")
        values = [self._scalar(f"{self.name}[{i}]", self.of, element) for i, element in enumerate(value)]
        if len(values) < self.min_length:
            raise bad_input(self.name, value, f"is too short; give {self.wanted}")
        if self.unique and len(set(values)) < len(values):
            raise bad_input(self.name, value, f"repeats a value; give {self.wanted}")
        return values

    def _scalar(self, name: str, kind: str | None, value: Any) -> Any:
        def check(right: bool, fault: str, hint: str = "") -> None:
            if not right:  # what is wanted takes long to say, and is seldom asked for
                raise bad_input(name, value, f"{fault}; give {self.wanted}{hint}")

        # bool is a subclass of int in Python, so types are compared exactly: `depth: true` is a mistake.
        if kind == "float" and type(value) is int and finite(value):
            value = float(value)
        if type(value) is not SCALARS[kind]:
            text = kind == "float" and isinstance(value, str) and NUMBER.fullmatch(value)
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if text else ""
            check(False, "is missing" if value is None else f"is of type {type(value).__name__}", hint)
        check(kind != "float" or finite(value), "is not finite")
        check(kind != "int" or abs(value) <= sys.maxsize, "is too large")
        if self.choices and value not in self.choices:
            check(False, "is not a choice", f"; {did_you_mean(value, map(str, self.choices))}")
        for key, (_, inside) in BOUNDS.items():
            limit = getattr(self, key)
            check(limit is None or inside(value, limit), "is out of range")
        return value


def finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def declare(name: str, content: Any) -> Declaration:
    """Return the declaration that one entry of `parameters:` holds; raise InputError where it is not well formed."""

    def check(right: bool, key: str, value: object, remedy: str) -> None:
        require(right, f"parameters.{name}{key}", value, remedy)

    check(name.isidentifier(), "", content, "the name must be a Python identifier")
    check(isinstance(content, dict), "", content, "give its type and meaning, like {type: int, min: 1, help: ...}")
    kind, choices = content.get("type"), content.get("choices")
    check(isinstance(kind, str) and kind in CONSTRAINTS, ".type", kind, f"give one of {', '.join(CONSTRAINTS)}")
    allowed = CONSTRAINTS[kind] | {"type", "help"}
    for key, value in content.items():
        check(key in allowed, f".{key}", value, f"does not apply to {kind}; {did_you_mean(key, allowed)}")
        check(key not in BOUNDS or finite(value), f".{key}", value, "give a finite number")
    for low, high in (("min", "max"), ("above", "below")):
        right = low not in content or high not in content or content[low] <= content[high]
        check(right, f".{low}", content.get(low), f"is larger than {high}; give the smaller number")
    element = content.get("of") if kind == "list" else kind
    right = isinstance(element, str) and element in SCALARS
    check(right, ".of", element, f"give the element type: {', '.join(SCALARS)}")
    right = isinstance(choices, list) and choices and all(type(choice) is SCALARS[element] for choice in choices)
    remedy = f"give a list of at least one {element} and of nothing else"
    check(right or "choices" not in content, ".choices", choices, remedy)
    counted = type(content.get("min_length", 0)) is int and type(content.get("unique", False)) is bool
    check(counted, "", content, "min_length is an int, unique true or false")
    check(isinstance(content.get("help"), str), ".help", content.get("help"), "say in a few words what it means")
    return Declaration(name=name, **{**content, "choices": tuple(choices) if choices else None})


def check_values(declarations: dict[str, Declaration], values: dict[str, Any], complete: bool = True) -> dict[str, Any]:
    """Return `values` checked, in the order of the declarations; raise InputError for an unknown or missing name."""
    for name in values.keys() - declarations.keys():  # the likeness of names is costly, and seldom asked for
        raise bad_input(name, values[name], f"is not a parameter; {did_you_mean(name, declarations)}")
    for name in [name for name in declarations if complete and name not in values][:1]:
        raise InputError(f"{name} = (missing): give {declarations[name].wanted}")
    return {name: declarations[name].check(values[name]) for name in declarations if name in values}
