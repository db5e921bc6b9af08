"""What a YAML file or a notebook may say: each name declared with its type and bounds, and the check of values.

The parameters of a notebook are declared in its own file; what stands in the files of the study, by their readers.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fragile_lib.tools.errors import InputError, bad_input, did_you_mean, listed, require

NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")
SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "mapping": dict}
PAIRS = "`name: value` pairs, or {} for none"
BOUNDS = {  # each with its words, and whether a value keeps to it
    "min": ("at least", operator.ge),
    "max": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}
CONSTRAINTS = {
    "int": (*BOUNDS, "choices"),
    "float": tuple(BOUNDS),
    "str": ("choices",),
    "bool": (),
    "list": (*BOUNDS, "of", "choices", "min_length", "unique"),
}


@dataclass(frozen=True)
class Declaration:
    """A parameter of a notebook, as `parameters:` of its YAML file states it, or another entry of a file.

    No parameter is a `mapping`, which other entries may be.
    """

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
        element = {"int": "an int", "mapping": PAIRS}.get(element, f"a {element}")
        element = f"a list of {self.of}" if self.type == "list" else element
        return ", ".join([element, *limits]) + (f" ({self.help})" if self.help else "")

    def check(self, value: Any, place: str = "") -> Any:
        """Return `value` as a built-in type (an int becomes a float where one is declared); raise InputError else.

        `place` stands before the name in messages.
        """
        name = place + self.name
        if self.type != "list":
            return self._scalar(name, self.type, value)
        if not isinstance(value, list | tuple):
            raise bad_input(name, value, f"give {self.wanted}")
        values = [self._scalar(f"{name}[{i}]", self.of, element) for i, element in enumerate(value)]
        if len(values) < self.min_length:
            raise bad_input(name, value, f"is too short; give {self.wanted}")
        if self.unique and len(set(values)) < len(values):
            raise bad_input(name, value, f"repeats a value; give {self.wanted}")
        return values

    def _scalar(self, name: str, kind: str | None, value: Any) -> Any:
        # bool is a subclass of int in Python, so types are compared exactly: `depth: true` is a mistake.
        if kind == "float" and type(value) is int and finite(value):
            value = float(value)
        if fault := self._fault(kind, value):
            raise bad_input(name, value, f"{fault}; give {self.wanted}")
        return value

    def _fault(self, kind: str | None, value: Any) -> str:
        """Say what is wrong with a single value; "" where nothing is."""
        if type(value) is not SCALARS[kind]:
            text = kind == "float" and isinstance(value, str) and NUMBER.fullmatch(value)
            hint = " (YAML reads 1e-3 as text, write 1.0e-3)" if text else ""
            return "is missing" if value is None else f"is of type {type(value).__name__}{hint}"
        if kind == "float" and not finite(value):
            return "is not finite"
        if kind == "int" and abs(value) > sys.maxsize:
            return "is too large"
        if self.choices and value not in self.choices:
            return f"is not a choice: {did_you_mean(value, map(str, self.choices))}"
        limits = ((inside, getattr(self, key)) for key, (_, inside) in BOUNDS.items())
        return "" if all(limit is None or inside(value, limit) for inside, limit in limits) else "is out of range"


def finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def declare(name: str, content: Any) -> Declaration:
    """Return the declaration that one entry of `parameters:` holds; raise InputError where it is not well formed."""
    place = f"parameters.{name}"
    require(name.isidentifier(), place, content, "the name must be a Python identifier")
    require(isinstance(content, dict), place, content, "give its type and meaning, like {type: int, min: 1, help: ...}")
    kind = FORM["type"].check(content.get("type"), f"{place}.")
    element = FORM["of"].check(content.get("of"), f"{place}.") if kind == "list" else kind
    form = FORM | declared("list", "choices", of=element, min_length=1)
    form = {key: form[key] for key in ("type", "help", *CONSTRAINTS[kind])}
    given = check_values(form, content, ("help",), f"{place}.", f"a constraint of {kind}")
    for low, high in (("min", "max"), ("above", "below")):
        right = low not in given or high not in given or given[low] <= given[high]
        require(right, f"{place}.{low}", content.get(low), f"is larger than {high}; give the smaller number")
    return Declaration(name, **{**given, "choices": tuple(given.get("choices", ())) or None})


def declared(type: str, *names: str, **others: Any) -> dict[str, Declaration]:
    """Return declarations that differ by their name alone."""
    return {name: Declaration(name, type, **others) for name in names}


FORM = {  # of an entry of `parameters:`, but for `choices`, whose type is that of the parameter
    **declared("float", *BOUNDS, help="a finite number"),
    **declared("str", "type", choices=tuple(CONSTRAINTS)),
    **declared("str", "of", choices=("int", "float", "str", "bool")),
    **declared("int", "min_length", min=0),
    **declared("bool", "unique"),
    **declared("str", "help", help="a few words on what it means"),
}


def check_values(
    declarations: Mapping[str, Declaration],
    values: Any,
    needed: Iterable[str] | None = None,
    place: str = "",
    what: str = "a parameter",
) -> dict[str, Any]:
    """Return `values` checked, in the order of the declarations.

    Raises InputError where they are no mapping, and for the first unknown name, missing one of the `needed` (all by
    default), or wrong value; `place` stands before each name, and `what` says what an unknown one is not.
    """
    require(isinstance(values, dict), place.rstrip(".: ") or "values", values, f"give {PAIRS}")
    for name in [name for name in values if name not in declarations]:  # the likeness of names is costly, seldom asked
        raise bad_input(f"{place}{name}", values[name], f"is not {what}; {did_you_mean(name, declarations)}")
    for name in [name for name in (declarations if needed is None else needed) if name not in values]:
        raise InputError(f"{place}{name} = (missing): give {declarations[name].wanted}")
    return {name: declared.check(values[name], place) for name, declared in declarations.items() if name in values}
