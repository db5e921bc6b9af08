"""Notebooks read as JSON: importing nbformat takes longer than everything that is asked here.

The rows that figures are drawn from lie in a published study as files beside them, else inside the notebook.
"""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fragile_lib.study.files import PACKED, content_of, shown, write_packed
from fragile_lib.tools.errors import bad_input, require
from fragile_lib.tools.files import load_json

Notebook = dict[str, Any]


def read_notebook(path: Path, root: Path) -> Notebook:
    """Return a notebook's JSON; raise InputError where it is missing or is none."""
    name = shown(path, root)
    try:
        content = load_json(path)
    except FileNotFoundError:
        raise bad_input("notebook", name, "is not there; write it or remove its parameters file") from None
    except (OSError, ValueError) as error:
        raise bad_input("notebook", name, f"{error}; restore it from git") from None
    cells = content.get("cells") if isinstance(content, dict) else None
    right = isinstance(cells, list) and all(map(_is_cell, cells))
    require(right, "notebook", name, "is no notebook of format 4; restore it from git")
    return content


def _is_cell(cell: Any) -> bool:
    """Whether something has the form of a cell."""
    metadata = cell.get("metadata", {}) if isinstance(cell, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tags", []), list):
        return False
    source, outputs = cell.get("source", ""), cell.get("outputs", [])
    lines = [source] if isinstance(source, str) else source
    right = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    return right and isinstance(outputs, list) and all(isinstance(output, dict) for output in outputs)


def as_json(notebook: Notebook) -> str:
    """Return a notebook's JSON as nbformat writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def source_of(cell: dict[str, Any]) -> str:
    """Return a cell's source as one text, whichever way it is stored."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def is_tagged(cell: dict[str, Any], tag: str) -> bool:
    """Whether a cell has a tag."""
    return tag in cell.get("metadata", {}).get("tags", [])


def code_cells(notebook: Notebook, parameters: bool = True) -> list[str]:
    """Return the sources of the code cells but of an injected one, with or without the one tagged `parameters`."""
    without = ("injected-parameters", *(() if parameters else ("parameters",)))
    cells = [cell for cell in notebook["cells"] if cell.get("cell_type") == "code"]
    return [source_of(cell) for cell in cells if not any(is_tagged(cell, tag) for tag in without)]


def parameters_cell(notebook: Notebook, name: str) -> dict[str, Any]:
    """Return what the cell tagged `parameters` assigns; raise InputError where there is not exactly one."""
    tagged = [source_of(cell) for cell in notebook["cells"] if is_tagged(cell, "parameters")]
    require(len(tagged) == 1, "notebook", name, f"has {len(tagged)} cells tagged `parameters`; tag exactly one")
    try:
        return assigned(*tagged)
    except (SyntaxError, RecursionError) as error:
        raise bad_input("notebook", name, f"its parameters cell is not Python ({error}); correct it") from None


def assigned(source: str) -> dict[str, Any]:
    """Return the names that a cell assigns at its top level, with their values where these are literals."""
    found: dict[str, Any] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            try:
                value = ast.literal_eval(statement.value) if statement.value else None
            except ValueError:
                value = None
            found.update({target.id: value for target in targets if isinstance(target, ast.Name)})
    return found


def refreshed(source: Notebook, executed: Notebook) -> Notebook:
    """Return the cells of `source` with the outputs of `executed`, whose code does the same."""
    injected = [cell for cell in executed["cells"] if is_tagged(cell, "injected-parameters")]
    outputs = (cell for cell in executed["cells"] if cell.get("cell_type") == "code" and cell not in injected)
    cells: list[dict[str, Any]] = []
    for cell in source["cells"]:
        code = cell.get("cell_type") == "code"
        cells.append({**next(outputs), "source": source_of(cell)} if code else cell)
        if is_tagged(cell, "parameters"):
            cells += injected
    return {**executed, "cells": cells}


FOLDER = "figures"
PNG = "image/png"  # the only kind of image that the notebooks show


def image_of(data: Mapping[str, Any], notebook: str) -> tuple[str, bytes]:
    """Return the name of an image's file, which changes with its content, and the content."""
    content = base64.b64decode("".join(data[PNG]))
    return f"{notebook}-{hashlib.sha256(content).hexdigest()[:8]}.png", content


def taken_out(notebook: Notebook, name: str, home: Path) -> Notebook:
    """Return an executed notebook without the rows that its PNG images are drawn from: files of `home`/figures.

    The images stay, and links to other folders lead there from reports/pages, for those who read it where it lies.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = source_of(cell).replace("](../", "](../../")  # a folder further down than notebooks/
    for path, told in _told(notebook, name, home):
        if "rows" in told:
            write_packed(path, told.pop("rows"))
    return notebook


def put_back(notebook: Notebook, name: str, home: Path) -> Notebook:
    """Return a notebook with the rows of its images inside again.

    Raises OSError where a file of rows is missing, ValueError where one is damaged.
    """
    notebook = copy.deepcopy(notebook)
    for path, told in _told(notebook, name, home):
        if "runs" in told and "rows" not in told:  # it is drawn from rows
            told["rows"] = content_of(path.with_name(path.name + PACKED)).decode()
    return notebook


def _told(notebook: Notebook, name: str, home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file for the rows of each image of a notebook, and what is told of the image."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    for output in outputs:
        if PNG in output.get("data", {}):
            file = (home / FOLDER / image_of(output["data"], name)[0]).with_suffix(".csv")
            yield file, output.get("metadata", {}).get(PNG, {})
