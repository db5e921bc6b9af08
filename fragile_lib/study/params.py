"""The parameters of notebooks: declared, checked, expanded to the runs of a grid, and checked again inside a notebook.

`load_specs(params_dir)` reads every file before anything is run or written. `Spec.runs(profile)` gives the runs,
`Spec.page_parameters(profile)` the parameters of the notebook's published page. A notebook calls
`check_parameters("iris", globals())` right after its `parameters` cell.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fragile_lib.study.files import study_root
from fragile_lib.study.notebook_file import assigned
from fragile_lib.tools.errors import InputError, bad_input, closest, did_you_mean, require
from fragile_lib.tools.files import data_root, load_yaml
from fragile_lib.tools.machine import begin

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
        limits = [
            f"{word} {getattr(self, key):g}" for key, (word, _) in BOUNDS.items() if getattr(self, key) is not None
        ]
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
        require(isinstance(value, (list, tuple)), self.name, value, f"give {self.wanted}{where}")
        assert self.of is not None
        values = [self._scalar(f"{self.name}[{i}]", self.of, element, where) for i, element in enumerate(value)]
        require(len(values) >= self.min_length, self.name, value, f"is too short; give {self.wanted}{where}")
        repeats = self.unique and len(set(values)) < len(values)
        require(not repeats, self.name, value, f"repeats a value; give {self.wanted}{where}")
        return values

    def _scalar(self, name: str, kind: str, value: Any, where: str) -> Any:
        def check(right: bool, fault: str, hint: str = "") -> None:
            require(right, name, value, f"{fault}; give {self.wanted}{hint}{where}")

        # bool is a subclass of int in Python, so types are compared exactly: `depth: true` is a mistake.
        if kind == "float" and type(value) is int:
            value = float(value)
        if type(value) is not SCALARS[kind]:
            hint = "; YAML reads 1e-3 as text, write 1.0e-3" if kind == "float" and NUMBER.fullmatch(str(value)) else ""
            check(False, "is missing" if value is None else f"is of type {type(value).__name__}", hint)
        check(kind != "float" or math.isfinite(value), "is not finite")
        if self.choices:
            check(value in self.choices, "is not a choice", f"; {did_you_mean(value, map(str, self.choices))}")
        for key, (_, inside) in BOUNDS.items():
            limit = getattr(self, key)
            check(limit is None or inside(value, limit), "is out of range")
        return value


def declare(name: str, content: Any, where: str) -> Declaration:
    """Return the declaration that one entry of `parameters:` holds; raise InputError where it is not well formed."""

    def check(right: bool, key: str, value: object, remedy: str) -> None:
        require(right, f"parameters.{name}{key}", value, f"{remedy} [{where}]")

    usable = name.isidentifier() and not hasattr(dict, name)
    check(usable, "", content, "the name must be a Python identifier and no method of dict")
    check(isinstance(content, dict), "", content, "give its type and meaning, like {type: int, min: 1, help: ...}")
    kind, choices = content.get("type"), content.get("choices")
    check(kind in CONSTRAINTS, ".type", kind, f"give one of {', '.join(CONSTRAINTS)}")
    allowed = CONSTRAINTS[kind] | {"type", "help"}
    for key, value in content.items():
        check(key in allowed, f".{key}", value, f"does not apply to {kind}; {did_you_mean(key, allowed)}")
        number = key not in BOUNDS or (type(value) in (int, float) and math.isfinite(value))
        check(number, f".{key}", value, "give a finite number")
    element = kind != "list" or content.get("of") in SCALARS
    check(element, ".of", content.get("of"), f"give the element type: {', '.join(SCALARS)}")
    listed = "choices" not in content or (isinstance(choices, list) and bool(choices))
    check(listed, ".choices", choices, "give a list of at least one value")
    counted = type(content.get("min_length", 0)) is int and type(content.get("unique", False)) is bool
    check(counted, "", content, "min_length is an int, unique true or false")
    check(isinstance(content.get("help"), str), ".help", content.get("help"), "say in a few words what it means")
    return Declaration(name=name, **{**content, "choices": tuple(choices) if choices else None})


def check_values(
    declarations: dict[str, Declaration], values: dict[str, Any], where: str, complete: bool = True
) -> dict[str, Any]:
    """Return `values` checked, in the order of the declarations; raise InputError for an unknown or missing name."""
    for name in values.keys() - declarations.keys():  # the likeness of names is costly, and seldom asked for
        raise bad_input(name, values[name], f"is not a parameter; {did_you_mean(name, declarations)} [{where}]")
    missing = [name for name in declarations if name not in values]
    if complete and missing:
        declaration = declarations[missing[0]]
        raise InputError(f"{missing[0]} = (missing): give {declaration.wanted} [{where}]")
    return {name: declarations[name].check(values[name], where) for name in declarations if name in values}


STANDARD = ("profile", "run_id", "output_dir", "grid_results")
OTHER_FILES = ("claims.yaml", "report.yaml", "deviations.yaml", "methods.yaml")
RESERVED_IDS = ("pages", "report", "records", "results.csv")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
TOP_KEYS = ("notebook", "parameters", "base", "run_id", "profiles", "page", "limits")
DEFAULT_LIMITS = {"threads": 1, "cell_minutes": 120}


@dataclass(frozen=True)
class Run:
    """One execution of a notebook: a point of a grid."""

    run_id: str
    notebook: str
    profile: str
    parameters: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Spec:
    """All that params/<notebook>.yaml says, checked."""

    notebook: str
    source: str
    declarations: dict[str, Declaration]
    base: dict[str, Any]
    run_id: str
    profiles: dict[str, dict[str, Any]]
    page: dict[str, Any] | None
    limits: dict[str, int]

    def runs(self, profile: str) -> tuple[Run, ...]:
        """Return the runs of a profile, in the order of its grids; none for a notebook without profiles."""
        if not self.profiles:
            return ()
        found: dict[str, Run] = {}
        for grid, axes in self._profile(profile).get("grids", {}).items():
            # A grid that needs data is checked, and run only where its data are in the data root.
            there = "needs" not in axes or (data_root() / axes["needs"]).exists()
            where = f"{self.source}, profile {profile}, grid {grid}"
            for point in _points(axes, where):
                run = self._run(profile, self._checked(profile, point, where), axes.get("run_id", self.run_id), where)
                if there and found.setdefault(run.run_id, run) != run:
                    differing = [k for k, v in run.parameters.items() if found[run.run_id].parameters[k] != v]
                    remedy = f"stands for two runs that differ in {', '.join(differing)}; add these to run_id"
                    raise bad_input("run_id", run.run_id, f"{remedy} [{where}]")
        return tuple(found.values())

    def page_parameters(self, profile: str) -> dict[str, Any] | None:
        """Return the parameters of the notebook's page in a profile, or None where it has no page."""
        if self.page is None:
            return None
        return self._checked(profile, self.page, f"{self.source}, page in profile {profile}")

    def _profile(self, profile: str) -> dict[str, Any]:
        remedy = f"is not in {self.source}; choose one of {', '.join(self.profiles)}"
        require(profile in self.profiles, "profile", profile, remedy)
        return self.profiles[profile]

    def _checked(self, profile: str, point: dict[str, Any], where: str) -> dict[str, Any]:
        shared = self._profile(profile).get("set", {}) if self.profiles else {}
        return check_values(self.declarations, {**self.base, **shared, **point}, where)

    def _run(self, profile: str, parameters: dict[str, Any], named: str, where: str) -> Run:
        def wrong(name: str, remedy: str) -> NoReturn:
            raise bad_input("run_id", name, f"{remedy} [{where}]") from None

        try:
            run_id = named.format(**parameters)
        except (KeyError, IndexError) as error:
            hint = did_you_mean(str(error).strip("'"), parameters)
            wrong(named, f"uses {error}, which is no parameter; {hint}")
        except (ValueError, TypeError, AttributeError) as error:
            wrong(named, f"is not a format text ({error}); correct it")
        if not NAME.fullmatch(run_id):
            wrong(run_id, "must be letters, digits, '.', '_' or '-', not starting with '.', as it names a folder")
        if run_id in RESERVED_IDS:
            wrong(run_id, "is taken by a folder of the study; choose another")
        return Run(run_id, self.notebook, profile, parameters)


def _points(axes: dict[str, Any], where: str) -> Iterable[dict[str, Any]]:
    """Yield the points of a grid: the product of its axes, on top of its own `set`."""
    fixed = axes.get("set", {})
    axes = {name: values for name, values in axes.items() if name not in ("set", "needs", "run_id")}
    require(isinstance(fixed, dict), "set", fixed, f"give `name: value` pairs [{where}]")
    for name, values in axes.items():
        require(isinstance(values, list) and values, name, values, f"an axis is a list of at least one value [{where}]")
        require(name not in fixed, name, values, f"is both an axis and in `set`; remove one [{where}]")
    for combination in itertools.product(*axes.values()):
        yield {**fixed, **dict(zip(axes, combination, strict=True))}


def load_spec(path: Path, source: str | None = None) -> Spec:
    """Return one parameters file, checked with all its profiles; raise InputError at its first mistake."""
    source = source or f"params/{path.name}"
    content = load_yaml(path, source)

    def check(right: bool, name: str, value: object, remedy: str) -> None:
        require(right, name, value, f"{remedy} [{source}]")

    for key, value in content.items():
        check(key in TOP_KEYS, key, value, f"is not a section of a parameters file; {did_you_mean(key, TOP_KEYS)}")
    notebook, page = content.get("notebook"), content.get("page", None if "page" not in content else {})
    check(notebook == path.stem, "notebook", notebook, f"must be {path.stem!r}, the name of the file; correct one")
    sections = {key: content.get(key) or {} for key in ("parameters", "base", "profiles", "limits")}
    for key, value in {**sections, "page": page or {}}.items():
        check(isinstance(value, dict), key, value, "give `name: value` pairs, or {} for none")
    declarations = {name: declare(name, c, source) for name, c in sections["parameters"].items()}
    for name in STANDARD:
        check(name not in declarations, f"parameters.{name}", "", "is given by the study itself; remove it")
    for profile, grids in sections["profiles"].items():
        _check_profile(profile, grids, check)
    run_id = content.get("run_id", "")
    named = not sections["profiles"] or (isinstance(run_id, str) and run_id)
    check(named, "run_id", run_id, 'give a text like "iris-d{depth}" that names each run')
    for name, value in sections["limits"].items():
        check(name in DEFAULT_LIMITS, f"limits.{name}", value, did_you_mean(name, DEFAULT_LIMITS))
        check(type(value) is int and value >= 1, f"limits.{name}", value, "give an int, at least 1")
    base = check_values(declarations, sections["base"], f"{source}, base", complete=False)
    limits = {**DEFAULT_LIMITS, **sections["limits"]}
    spec = Spec(notebook, source, declarations, base, run_id, sections["profiles"], page, limits)
    for profile in spec.profiles or ["quick"]:
        spec.runs(profile)
        spec.page_parameters(profile)
    return spec


def _check_profile(profile: str, content: Any, check: Callable[[bool, str, object, str], None]) -> None:
    name = f"profiles.{profile}"
    check(bool(NAME.fullmatch(profile)), "profile", profile, "must be letters, digits, '_' or '-': it names a folder")
    check(isinstance(content, dict) and bool(content), name, content, "give `set:` and `grids:`")
    for key, value in content.items():
        check(key in ("set", "grids"), f"{name}.{key}", value, "is neither `set` nor `grids`; move it into one")
        check(isinstance(value, dict), f"{name}.{key}", value, "give `name: value` pairs")
    for grid, axes in content.get("grids", {}).items():
        check(isinstance(axes, dict) and bool(axes), f"{name}.grids.{grid}", axes, "give axes, like {depth: [1, 8]}")
        for key, remedy in (("needs", "give a path in the data root"), ("run_id", "give a text that names each run")):
            check(isinstance(axes.get(key, ""), str), f"{name}.grids.{grid}.{key}", axes.get(key), remedy)


def load_specs(params_dir: Path) -> dict[str, Spec]:
    """Return all parameters files of a folder by notebook; raise InputError at the first mistake in any of them."""
    paths = sorted(p for p in params_dir.glob("*.y*ml") if p.name not in OTHER_FILES)
    require(paths, "params", params_dir.name, "holds no parameters file; add one like params/iris.yaml")
    specs = {path.stem: load_spec(path) for path in paths}
    owner: dict[tuple[str, str], str] = {}
    for spec in specs.values():
        for profile in spec.profiles:
            for run in spec.runs(profile):
                # Compared without case, because some file systems do.
                other = owner.setdefault((profile, run.run_id.casefold()), f"{spec.notebook} {run.run_id}")
                remedy = f"names the same folder as {other}; add to run_id what tells them apart"
                where = f"[{spec.source}, profile {profile}]"
                require(other == f"{spec.notebook} {run.run_id}", "run_id", run.run_id, f"{remedy} {where}")
    return specs


def select(specs: Mapping[str, Spec], profile: str, notebook: str | None = None) -> dict[str, Spec]:
    """Return the specs that a profile and an optional notebook name; raise InputError where one is not there.

    Without a notebook those that know nothing of the profile are left out: not every study needs every scale.
    """
    profiles = list(dict.fromkeys(name for spec in specs.values() for name in spec.profiles))
    remedy = f"is not there; there are {', '.join(profiles) or 'none'}{closest(profile, profiles, '; ')}"
    require(profile in profiles, "profile", profile, remedy)
    remedy = f"has no params/{notebook}.yaml; {did_you_mean(str(notebook), specs)}"
    require(not notebook or notebook in specs, "notebook", notebook, remedy)
    known = {name for name, spec in specs.items() if not spec.profiles or profile in spec.profiles}
    chosen = {name: spec for name, spec in specs.items() if (name == notebook if notebook else name in known)}
    for spec in chosen.values():
        spec.runs(profile)  # raises where the notebook does not have the profile
    return chosen


class Parameters(dict):
    """The checked parameters of a notebook: a dict that also reads `parameters.depth` and cannot be changed."""

    def __getattr__(self, name: str) -> Any:
        """Return the parameter of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no parameter {name!r}; {did_you_mean(name, self)}") from None

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("parameters are fixed once checked; change the parameters cell and run it again")

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _fixed
    update = pop = popitem = clear = setdefault = __ior__ = _fixed  # type: ignore[assignment]


def check_parameters(notebook: str, namespace: Mapping[str, Any]) -> Parameters:
    """Return the declared parameters found in a notebook's `namespace`, checked; works in every working directory.

    Raises InputError for a missing, mistyped or out-of-range value, and for an injected name that the notebook does
    not know (papermill itself only warns there and runs the defaults).
    """
    begin()
    spec, where = load_spec(study_root() / "params" / f"{notebook}.yaml"), f"notebooks/{notebook}.ipynb"
    for name, value in _injected(namespace).items():
        remedy = f"is not a parameter; {did_you_mean(name, spec.declarations)} [{where}]"
        require(name in (*spec.declarations, *STANDARD), name, value, remedy)
    values = {name: namespace[name] for name in spec.declarations if name in namespace}
    return Parameters(check_values(spec.declarations, values, where))


def _injected(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what papermill injected: IPython keeps the source of its cell, which starts with '# Parameters'."""
    found: dict[str, Any] = {}
    for source in namespace.get("In", []):
        if isinstance(source, str) and source.startswith("# Parameters\n"):
            found.update(assigned(source))
    return {name: namespace.get(name, value) for name, value in found.items()}
