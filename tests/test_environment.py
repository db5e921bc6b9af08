"""What is installed, and for what: lock, pins and project name the same packages, and the library needs few."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==(\S+) \\$", LOCK, re.M)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY, STUDY, TEST = (
    [Requirement(text) for text in group]
    for group in (PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in ("study", "test")))
)
NEEDED = LIBRARY + STUDY + TEST
# What a package is imported by, and what comes with what is asked for.
CALLED = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "bs4": "beautifulsoup4", "llvmlite": "numba"}
CALLED |= dict.fromkeys(("jupyter_client", "IPython", "traitlets"), "ipykernel")


def test_the_lock_holds_every_dependency_in_a_version_that_will_do():
    for needed in NEEDED:
        version = LOCKED[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{needed} is locked at {version}"


def test_every_locked_package_has_a_hash_and_nothing_is_without_a_version():
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.M).strip())
    assert len(entries) == len(LOCKED) > len(NEEDED)
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_the_lock_holds_what_its_packages_need_here():
    """As the installed versions say it, which are those of the lock where the lock was installed."""
    installed = {canonicalize_name(one.metadata["Name"]): one for one in metadata.distributions()}
    texts = [text for name in LOCKED.keys() & installed for text in installed[name].requires or ()]
    needed = [one for one in map(Requirement, texts) if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert len(needed) > 200 and not {canonicalize_name(one.name) for one in needed} - LOCKED.keys()


def test_conda_s_pins_are_the_locked_versions_of_what_is_needed():
    (pip,) = [part["pip"] for part in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1:]]
    pins = dict(line.split("==") for line in pip if "==" in line)
    assert {canonicalize_name(name) for name in pins} == {canonicalize_name(needed.name) for needed in NEEDED}
    for name, version in pins.items():
        assert LOCKED[canonicalize_name(name)] == version, name
    assert [line for line in pip if "==" not in line] == ["-e .[study,test]"]


def imported(folder: str) -> set[str]:
    """The packages that the modules of a folder of the package import, by the names they are installed by."""
    paths = [p for p in (ROOT / "fragile_lib").rglob("*.py") if ("study" in p.parts) == (folder == "study")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    return {CALLED.get(n, n) for n in names - set(sys.stdlib_module_names) - {"fragile_lib"}}


def test_the_library_asks_for_what_it_imports_and_the_study_for_the_rest() -> None:
    library, study = ({needed.name for needed in group} for group in (LIBRARY, STUDY))
    assert imported("library") <= library and imported("study") <= library | study
    assert not library & study and {"jupyterlab", "papermill", "snakemake"} <= study


def test_the_library_is_imported_where_nothing_of_the_study_is_installed() -> None:
    """Every module but the study's, with all that the extra installs out of reach."""
    names = [needed.name for needed in STUDY] + ["bs4", "IPython", "jupyter_client"]
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in sorted((ROOT / "fragile_lib").rglob("*.py"))
        if "study" not in p.parts
    ]
    # numba and torch look for some of these by themselves, and go on without
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({names!r}))\n"
    code += f"for name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_notebook_shows_no_warning_that_its_reader_cannot_mend_and_all_others() -> None:
    said = "from fragile_lib import study; import warnings; [warnings.warn(t, FutureWarning) for t in {}]"
    texts = ["`torch.jit.script` is deprecated. Please switch", "something else"]
    done = subprocess.run([sys.executable, "-c", said.format(texts)], capture_output=True, text=True, check=True)
    assert "jit" not in done.stderr.splitlines()[0] and "FutureWarning: something else" in done.stderr
    assert done.stderr.count("FutureWarning") == 1
