"""The parameters of notebooks: declared, checked, expanded to the runs of a grid, and checked again inside a notebook.

`load_specs(params_dir)` reads every file before anything is run or written. `Spec.runs(profile)` gives the runs,
`Spec.page_parameters(profile)` the parameters of the notebook's published page. A notebook calls
`check_parameters("iris", globals())` right after its `parameters` cell.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fragile_lib.study.declaration import Declaration, check_values, declare
from fragile_lib.study.files import study_root
from fragile_lib.study.notebook_file import assigned
from fragile_lib.tools.errors import InputError, bad_input, closest, did_you_mean, listed, require
from fragile_lib.tools.files import data_root, load_yaml
from fragile_lib.tools.machine import begin

STANDARD = ("profile", "run_id", "output_dir", "grid_results")
OTHER_FILES = ("claims.yaml", "report.yaml", "deviations.yaml", "methods.yaml")
RESERVED_IDS = ("pages", "report", "records", "results.csv")
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
NAMED = "letters, digits, '.', '_' or '-', not starting with '.' or '-', not ending with '.', at most 100"
MOST_RUNS = 10_000  # of one notebook in one profile
TOP_KEYS = ("notebook", "parameters", "base", "run_id", "profiles", "page", "limits")
DEFAULT_LIMITS = {"threads": 1, "cell_minutes": 120}
MOST = {"threads": 1024, "cell_minutes": 100_000}


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
        """Return the runs of a profile, in the order of its grids; none where the notebook does not have the profile.

        A grid that needs data is checked, and run only where they are in the data root (`lacking`).
        """
        found: dict[str, Run] = {}
        absent = self.lacking(profile)
        for grid, axes in self.profiles.get(profile, {}).get("grids", {}).items():
            there, where = grid not in absent, f"{self.source}, profile {profile}, grid {grid}"
            for point in self._points(axes, where):
                run = self._run(profile, self._checked(profile, point, where), axes.get("run_id", self.run_id), where)
                if there and found.setdefault(run.run_id, run) != run:
                    differing = [k for k, v in run.parameters.items() if found[run.run_id].parameters[k] != v]
                    remedy = f"stands for two runs that differ in {', '.join(differing)}; add these to run_id"
                    raise bad_input("run_id", run.run_id, f"{remedy} [{where}]")
        return tuple(found.values())

    def lacking(self, profile: str) -> dict[str, str]:
        """Return the grids of a profile whose data are not in the data root, and the path that each needs."""
        grids = self.profiles.get(profile, {}).get("grids", {})
        needs = {grid: axes["needs"] for grid, axes in grids.items() if "needs" in axes}
        return {grid: path for grid, path in needs.items() if not os.path.exists(data_root() / path)}

    def page_parameters(self, profile: str) -> dict[str, Any] | None:
        """Return the parameters of the notebook's page in a profile, or None where it has no page."""
        if self.page is None:
            return None
        return self._checked(profile, self.page, f"{self.source}, page in profile {profile}")

    def _checked(self, profile: str, point: dict[str, Any], where: str) -> dict[str, Any]:
        shared = self.profiles.get(profile, {}).get("set", {})
        return check_values(self.declarations, {**self.base, **shared, **point}, where)

    def _points(self, axes: dict[str, Any], where: str) -> Iterable[dict[str, Any]]:
        """Yield the points of a grid: the product of its axes, on top of its own `set`."""
        fixed = axes.get("set", {})
        axes = {name: values for name, values in axes.items() if name not in ("set", "needs", "run_id")}
        require(isinstance(fixed, dict), "set", fixed, f"give `name: value` pairs [{where}]")
        for name, values in axes.items():
            right = isinstance(values, list) and values
            require(right, name, values, f"an axis is a list of at least one value [{where}]")
            require(name not in fixed, name, values, f"is both an axis and in `set`; remove one [{where}]")
        count = math.prod(map(len, axes.values()))
        require(count <= MOST_RUNS, "grid", count, f"is too many runs, {MOST_RUNS} at most; divide it [{where}]")
        for name in axes.keys() & self.declarations.keys():
            values = [self.declarations[name].check(value, where) for value in axes[name]]
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            require(not twice, name, twice, f"stands twice in its axis; remove one [{where}]")
        for combination in itertools.product(*axes.values()):
            yield {**fixed, **dict(zip(axes, combination, strict=True))}

    def _run(self, profile: str, parameters: dict[str, Any], named: str, where: str) -> Run:
        def wrong(name: str, remedy: str) -> NoReturn:
            raise bad_input("run_id", name, f"{remedy} [{where}]") from None

        try:
            for _, name, form, _ in string.Formatter().parse(named):
                if name is not None and name not in parameters:
                    wrong(named, f"uses {name!r}, which is no parameter; {did_you_mean(name, parameters)}")
                if re.search(r"[0-9]{3}|{", form or ""):  # as wide as memory
                    wrong(named, f"has the format {form!r}; give at most two digits")
            run_id = named.format(**parameters)
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            wrong(named, f"is not a format text ({error}); correct it")
        if not NAME.fullmatch(run_id):
            wrong(run_id, f"must be {NAMED}, as it names a folder")
        if run_id in RESERVED_IDS:
            wrong(run_id, "is taken by a folder of the study; choose another")
        return Run(run_id, self.notebook, profile, parameters)


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
        right = type(value) is int and 1 <= value <= MOST[name]
        check(right, f"limits.{name}", value, f"give an int, at least 1 and at most {MOST[name]}")
    base = check_values(declarations, sections["base"], f"{source}, base", complete=False)
    limits = {**DEFAULT_LIMITS, **sections["limits"]}
    spec = Spec(notebook, source, declarations, base, run_id, sections["profiles"], page, limits)
    for profile in spec.profiles or ["quick"]:
        spec.runs(profile)
        spec.page_parameters(profile)
    return spec


def _check_profile(profile: str, content: Any, check: Callable[[bool, str, object, str], None]) -> None:
    name = f"profiles.{profile}"
    remedy = f"must be {NAMED}, and no number or word that YAML reads as another: it names a folder"
    check(is_name(profile), "profile", profile, remedy)
    check(isinstance(content, dict) and bool(content), name, content, "give `set:` and `grids:`")
    for key, value in content.items():
        check(key in ("set", "grids"), f"{name}.{key}", value, "is neither `set` nor `grids`; move it into one")
        check(isinstance(value, dict), f"{name}.{key}", value, "give `name: value` pairs")
    for grid, axes in content.get("grids", {}).items():
        check(isinstance(axes, dict) and bool(axes), f"{name}.grids.{grid}", axes, "give axes, like {depth: [1, 8]}")
        for key, remedy in (("needs", "give a path in the data root"), ("run_id", "give a text that names each run")):
            check(isinstance(axes.get(key, ""), str), f"{name}.grids.{grid}.{key}", axes.get(key), remedy)
        needs = Path(axes.get("needs", "here"))
        inside = needs.parts and not needs.is_absolute() and ".." not in needs.parts
        check(inside, f"{name}.grids.{grid}.needs", str(needs), "give a path inside the data root, without ..")


def is_name(text: str) -> bool:
    """Whether a text can name a profile: a folder, and the same text after a command line was read as YAML."""
    try:
        float(text)  # as Snakemake reads 1e3, inf and nan
    except ValueError:
        return bool(NAME.fullmatch(text)) and yaml.safe_load(text) == text
    return False


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
    remedy = f"is not there; there are {listed(profiles) or 'none'}{closest(profile, profiles, '; ')}"
    require(profile in profiles, "profile", profile, remedy)
    remedy = f"has no file of its name in params/; {did_you_mean(notebook or '', specs)}"
    require(not notebook or notebook in specs, "notebook", notebook, remedy)
    own = listed(specs[notebook].profiles) if notebook else ""
    known = {name: spec for name, spec in specs.items() if profile in spec.profiles or not spec.profiles}
    chosen = {name: spec for name, spec in known.items() if not notebook or name == notebook}
    require(chosen, "profile", profile, f"is not in params/{notebook}.yaml; choose one of {own}")
    absent = [path for spec in chosen.values() for path in spec.lacking(profile).values()]
    nothing = absent and not any(spec.runs(profile) for spec in chosen.values())
    remedy = (
        f"is not in the data root {data_root()}, and without it there is nothing to run; correct it or put it there"
    )
    require(not nothing, "needs", absent[0] if absent else "", remedy)
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
