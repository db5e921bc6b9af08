"""Notebooks read as JSON: importing nbformat takes longer than everything that is asked here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fragile_lib.study.files import shown
from fragile_lib.study.params import STANDARD, Spec, assigned
from fragile_lib.tools.errors import bad_input


def read_notebook(path: Path, root: Path) -> dict[str, Any]:
    """Return a notebook's JSON; raise InputError where it is missing or is none."""
    name = shown(path, root)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise bad_input("notebook", name, "is not there; write it or remove its parameters file") from None
    except (OSError, ValueError) as error:
        raise bad_input("notebook", name, f"cannot be read ({error}); restore it from git") from None
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise bad_input("notebook", name, "is no notebook of format 4; restore it from git")
    return content


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's source as one text, whichever way it is stored."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def code_cells(notebook: dict[str, Any]) -> list[str]:
    """Return the sources of the code cells."""
    return [source_of(cell) for cell in notebook["cells"] if cell.get("cell_type") == "code"]


def parameters_cell(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the cell tagged `parameters` assigns; raise InputError where there is not exactly one."""
    tagged = [c for c in notebook["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise bad_input("notebook", name, f"has {len(tagged)} cells tagged `parameters`; tag exactly one")
    try:
        return assigned(source_of(tagged[0]))
    except SyntaxError as error:
        raise bad_input("notebook", name, f"its parameters cell is not Python ({error}); correct it") from None


def check_notebook(spec: Spec, root: Path) -> dict[str, Any]:
    """Return the notebook of a spec after checking that both know the same parameters."""
    name = f"notebooks/{spec.notebook}.ipynb"
    notebook = read_notebook(root / name, root)
    known = parameters_cell(notebook, name)
    for parameter in spec.declarations:
        if parameter not in known:
            remedy = f"is declared in {spec.source} but not in the parameters cell of {name}; add it there"
            raise bad_input(parameter, "(missing)", remedy)
    for parameter, value in known.items():
        if parameter not in spec.declarations and parameter not in STANDARD:
            remedy = f"is in the parameters cell of {name} but not declared in {spec.source}; add it there"
            raise bad_input(parameter, value, remedy)
    if spec.profiles and "output_dir" not in known:
        raise bad_input(
            "output_dir", "(missing)", f"is not in the parameters cell of {name}, so no record would come; add it"
        )
    return notebook
