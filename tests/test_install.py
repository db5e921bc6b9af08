"""What is installed for what: the library alone, or the notebooks, grids and report too."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CALLED = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "bs4": "beautifulsoup4"}
# What comes with what is asked for.
WITH = {"jupyter_client": "ipykernel", "IPython": "ipykernel", "traitlets": "ipykernel", "llvmlite": "numba"}


def asked(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0] for line in requirements}


LIBRARY, STUDY = asked(PROJECT["dependencies"]), asked(PROJECT["optional-dependencies"]["study"])


def imported(folder: str) -> set[str]:
    """The packages that the modules of a folder of the package import, by the names they are installed by."""
    paths = [p for p in (ROOT / "fragile_lib").rglob("*.py") if ("study" in p.parts) == (folder == "study")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
    return {WITH.get(n, CALLED.get(n, n)) for n in names - set(sys.stdlib_module_names) - {"fragile_lib"}}


def test_the_library_asks_for_what_it_imports_and_the_study_for_the_rest() -> None:
    assert imported("library") <= LIBRARY
    assert imported("study") <= LIBRARY | STUDY
    assert not LIBRARY & STUDY
    assert not LIBRARY & {"jupyterlab", "papermill", "snakemake"} and {"jupyterlab", "papermill", "snakemake"} <= STUDY


def test_the_library_is_imported_where_nothing_of_the_study_is_installed() -> None:
    """Every module but the study's, with all that the extra installs out of reach."""
    names = [n for n in STUDY | {"bs4", "IPython", "jupyter_client"}]
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
