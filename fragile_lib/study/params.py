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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from fragile_lib.study.declaration import Declaration, check_values, declare, declared
from fragile_lib.study.files import study_root
from fragile_lib.study.notebook_file import assigned
from fragile_lib.tools.errors import InputError, bad_input, closest, did_you_mean, listed, require, within
from fragile_lib.tools.files import data_root, load_yaml
from fragile_lib.tools.machine import WORK

STANDARD = ("profile", "run_id", "output_dir", "grid_results")
OTHER_FILES = ("claims.yaml", "report.yaml", "deviations.yaml", "methods.yaml")
RESERVED_IDS = ("pages", "report", "records", "results.csv")
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
NAMED = "letters, digits, '.', '_' or '-', not starting with '.' or '-', not ending with '.', at most 100"
NO_NUMBER = ", and no number or word that YAML reads as another"
MOST_RUNS = 10_000  # of one notebook in all its profiles
DEFAULT_LIMITS = {"threads": 1, "cell_minutes": 120}
FILE = declared("str", "notebook", "run_id") | declared("mapping", "parameters", "base", "profiles", "page", "limits")
EMPTY = {"parameters": {}, "base": {}, "run_id": "", "profiles": {}, "page": None, "limits": {}}
PROFILE = declared("mapping", "set", "grids")
GRID = declared("mapping", "set") | declared("str", "run_id") | declared("str", "needs", help="a path in the data root")
LIMITS = declared("int", "threads", min=1, max=1024) | declared("int", "cell_minutes", min=1, max=100_000)


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
            with within(f"{self.source}, profile {profile}, grid {grid}"):
                for point in self._points(axes):
                    parameters = self._checked(profile, point)
                    run = Run(_run_id(axes.get("run_id", self.run_id), parameters), self.notebook, profile, parameters)
                    if grid not in absent and found.setdefault(run.run_id, run) != run:
                        differing = [k for k, v in parameters.items() if found[run.run_id].parameters[k] != v]
                        remedy = f"stands for two runs that differ in {', '.join(differing)}; add these to run_id"
                        raise bad_input("run_id", run.run_id, remedy)
        return tuple(found.values())

    def lacking(self, profile: str) -> dict[str, str]:
        """Return the grids of a profile whose data are not in the data root, and the path that each needs."""
        grids = self.profiles.get(profile, {}).get("grids", {})
        needs = {grid: axes["needs"] for grid, axes in grids.items() if "needs" in axes}
        return {grid: path for grid, path in needs.items() if not os.path.exists(data_root() / path)}

    def page_parameters(self, profile: str) -> dict[str, Any] | None:
        """Return the parameters of the notebook's page in a profile, or None where it has no page."""
        with within(f"{self.source}, page in profile {profile}"):
            return None if self.page is None else self._checked(profile, self.page)

    def _checked(self, profile: str, point: dict[str, Any]) -> dict[str, Any]:
        shared = self.profiles.get(profile, {}).get("set", {})
        return check_values(self.declarations, {**self.base, **shared, **point})

    def _points(self, axes: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the points of a grid: the product of its axes, on top of its own `set`."""
        fixed = axes.get("set", {})
        axes = {name: values for name, values in axes.items() if name not in GRID}
        for name, values in axes.items():
            require(isinstance(values, list) and values, name, values, "an axis is a list of at least one value")
            require(name not in fixed, name, values, "is both an axis and in `set`; remove one")
        for name in axes.keys() & self.declarations.keys():
            values = [self.declarations[name].check(value) for value in axes[name]]
            twice = [value for place, value in enumerate(values) if value in values[:place]]
            require(not twice, name, twice, "stands twice in its axis; remove one")
        for combination in itertools.product(*axes.values()):
            yield {**fixed, **dict(zip(axes, combination, strict=True))}


def _run_id(named: str, parameters: dict[str, Any]) -> str:
    """Return a run's name by the text that names the runs; raise InputError where it can name no folder."""
    try:
        for _, name, form, _ in string.Formatter().parse(named):
            if name is not None and name not in parameters:
                remedy = f"uses {name!r}, which is no parameter; {did_you_mean(name, parameters)}"
                raise bad_input("run_id", named, remedy)
            wide = re.search(r"[0-9]{3}|{", form or "")  # as wide as memory
            require(not wide, "run_id", named, f"has the format {form!r}; give at most two digits")
        run_id = named.format(**parameters)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise bad_input("run_id", named, f"is not a format text ({error}); correct it") from None
    require(NAME.fullmatch(run_id), "run_id", run_id, f"must be {NAMED}, as it names a folder")
    require(run_id not in RESERVED_IDS, "run_id", run_id, "is taken by a folder of the study; choose another")
    return run_id


def load_spec(path: Path) -> Spec:
    """Return one parameters file, checked with all its profiles; raise InputError at its first mistake."""
    source = f"params/{path.name}"
    content = load_yaml(path, source)
    with within(source):
        content = {key: value for key, value in content.items() if value is not None}
        given = {**EMPTY, **check_values(FILE, content, ("notebook",), what="a section of a parameters file")}
        notebook, remedy = given["notebook"], f"must be {path.stem!r}, the name of the file; correct one"
        require(notebook == path.stem, "notebook", notebook, remedy)
        require(is_name(notebook), "notebook", notebook, f"must be {NAMED}{NO_NUMBER}")
        declarations = {name: declare(name, entry) for name, entry in given["parameters"].items()}
        for name in STANDARD:
            require(name not in declarations, f"parameters.{name}", "", "is given by the study itself; remove it")
        for profile, grids in given["profiles"].items():
            _check_profile(profile, grids)
        grids = [axes for profile in given["profiles"].values() for axes in profile.get("grids", {}).values()]
        count = sum(math.prod(len(axis) for axis in axes.values() if isinstance(axis, list)) for axes in grids)
        require(count <= MOST_RUNS, "grids", count, f"are too many runs, {MOST_RUNS} at most; divide them")
        named = given["run_id"] or not given["profiles"]
        require(named, "run_id", given["run_id"], 'give a text like "iris-d{depth}" that names each run')
        limits = DEFAULT_LIMITS | check_values(LIMITS, given["limits"], (), "limits.", "a limit")
    with within(f"{source}, base"):
        base = check_values(declarations, given["base"], ())
    spec = Spec(notebook, source, declarations, base, given["run_id"], given["profiles"], given["page"], limits)
    for profile in spec.profiles or ["quick"]:
        spec.runs(profile)
        spec.page_parameters(profile)
    return spec


def _check_profile(profile: str, content: Any) -> None:
    name = f"profiles.{profile}"
    require(is_name(profile), "profile", profile, f"must be {NAMED}{NO_NUMBER}: it names a folder")
    require(content, name, content, "give `set:` and `grids:`")
    for grid, axes in check_values(PROFILE, content, (), f"{name}.", "`set` or `grids`").get("grids", {}).items():
        place = f"{name}.grids.{grid}"
        require(isinstance(axes, dict) and axes, place, axes, "give axes, like {depth: [1, 8]}")
        check_values(GRID, {key: axes[key] for key in GRID if key in axes}, (), f"{place}.")
        needs = Path(axes.get("needs", "here"))
        inside = needs.parts and not needs.is_absolute() and ".." not in needs.parts and str(needs).isprintable()
        require(inside, f"{place}.needs", str(needs), "give a path inside the data root, without ..")


def is_name(text: str) -> bool:
    """Whether a text can name a profile or notebook: a folder, and the same text when it is read as YAML."""
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
    for spec, profile in [(known, name) for known in specs.values() for name in known.profiles]:
        with within(f"{spec.source}, profile {profile}"):
            for run in spec.runs(profile):
                own = f"{spec.notebook} {run.run_id}"
                other = owner.setdefault((profile, run.run_id.casefold()), own)  # as some file systems have no case
                remedy = f"names the same folder as {other}; add to run_id what tells them apart"
                require(other == own, "run_id", run.run_id, remedy)
    return specs


def planned(specs: Mapping[str, Spec], *profiles: str) -> dict[str, str]:
    """Return the runs of some profiles, in their order, each with its notebook."""
    found = [run for profile in profiles for spec in specs.values() for run in spec.runs(profile)]
    return {run.run_id: run.notebook for run in found}


def select(specs: Mapping[str, Spec], profile: str, notebook: str | None = None) -> dict[str, Spec]:
    """Return the specs that a profile and an optional notebook name; raise InputError where one is not there.

    Without a notebook those that know nothing of the profile are left out: not every study needs every scale.
    """
    profiles = list(dict.fromkeys(name for spec in specs.values() for name in spec.profiles))
    remedy = f"is not there; there are {listed(profiles) or 'none'}{closest(profile, profiles, '; ')}"
    require(profile in profiles, "profile", profile, remedy)
    remedy = f"has no file of its name in params/; {did_you_mean(notebook or '', specs)}"
    require(not notebook or notebook in specs, "notebook", notebook, remedy)
    asked = {notebook: specs[notebook]} if notebook else specs
    chosen = {name: spec for name, spec in asked.items() if profile in spec.profiles or not spec.profiles}
    remedy = f"is not in params/{notebook}.yaml; choose one of {listed(specs[notebook].profiles) if notebook else ''}"
    require(chosen, "profile", profile, remedy)
    absent = [path for spec in chosen.values() for path in spec.lacking(profile).values()]
    nothing = absent and not any(spec.runs(profile) for spec in chosen.values())
    remedy = f"is not in the data root {data_root()}, and without it there is nothing to run"
    require(not nothing, "needs", "".join(absent[:1]), f"{remedy}; correct it or put it there")
    return chosen


def check_parameters(notebook: str, namespace: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the declared parameters found in a notebook's `namespace`, checked; works in every working directory.

    They are fixed from here on: who wants others changes the parameters cell and runs it again.

    Raises InputError for a missing, mistyped or out-of-range value, and for an injected name that the notebook does
    not know (papermill itself only warns there and runs the defaults).
    """
    WORK.begin()
    spec = load_spec(study_root() / "params" / f"{notebook}.yaml")
    with within(f"notebooks/{notebook}.ipynb"):
        for name, value in _injected(namespace).items():
            remedy = f"is not a parameter; {did_you_mean(name, spec.declarations)}"
            require(name in (*spec.declarations, *STANDARD), name, value, remedy)
        values = {name: namespace[name] for name in spec.declarations if name in namespace}
        return MappingProxyType(check_values(spec.declarations, values))


def _injected(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return what papermill injected: IPython keeps the source of its cell, which starts with '# Parameters'."""
    found: dict[str, Any] = {}
    for source in namespace.get("In", []):
        if isinstance(source, str) and source.startswith("# Parameters\n"):
            found.update(assigned(source))
    return {name: namespace.get(name, value) for name, value in found.items()}
