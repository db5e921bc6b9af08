"""What a finished result depends on, as one hash: parameters, the notebook's code, the definitions it reaches.

Code is hashed by its syntax tree without docstrings, so a comment, a docstring or another line break reruns nothing.
Outputs, prose, and the rooms that do not change numbers are left out. It is hashed by definition and not by module, so
that what is written for one notebook reruns no other (`tools.reached`).
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fragile_lib.tools.reached import reached

NOT_SCIENCE = ("study", "plots", "__init__", "tools")


def run_fingerprint(parameters: dict[str, Any], code: list[Any]) -> str:
    """Return the fingerprint of a run, from its parameters and its notebook's `notebook_code`."""
    return digest([parameters, *code])


def notebook_code(cells: list[str], package: Path, also: tuple[str, ...] = ()) -> list[Any]:
    """Return what decides the numbers of a notebook: its cells and the definitions that they reach."""
    return [[canonical_code(cell) for cell in cells], science_code(cells, package, also)]


def digest(content: Any) -> str:
    """Return the SHA-256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def science_code(cells: Iterable[str], package: Path, also: tuple[str, ...] = ()) -> dict[str, str]:
    """Return `module:name` -> hash of the definitions that the cells reach in the package (see `reached`).

    Only these: what is written for another notebook must not rerun this one.
    """
    trees = [tree for cell in cells if (tree := _tree(cell)) is not None]
    found = reached(trees, package, frozenset(NOT_SCIENCE) - set(also))
    return {place: hashlib.sha256(_canonical(nodes).encode()).hexdigest() for place, nodes in found.items() if nodes}


def canonical_code(source: str) -> str:
    """Return a text that changes only with what the code does, equal under every supported Python version."""
    tree = _tree(source)
    return source if tree is None else _canonical(tree)


def _tree(source: str) -> ast.Module | None:
    """Return the syntax tree of a cell or module, IPython's magic lines left out; None where it is not Python."""
    lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None


def _canonical(node: Any) -> str:
    """Dump a tree without docstrings and empty fields; `ast.dump` would differ between Python versions."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        body = fields["body"]
        if body and isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
            fields["body"] = body[1:]
    kept = (f"{name}={_canonical(value)}" for name, value in sorted(fields.items()) if value not in (None, []))
    return f"{type(node).__name__}({','.join(kept)})"
