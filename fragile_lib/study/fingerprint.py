"""What a finished result depends on, as one hash: parameters, the notebook's code, the science modules it imports.

Code is hashed by its syntax tree without docstrings, so a comment, a docstring or another line break reruns nothing.
Outputs, prose, `study/` and `plots.py` do not change numbers and are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = "fragile_lib"
NOT_SCIENCE = ("study", "plots", "__init__", "errors")


def run_fingerprint(parameters: dict[str, Any], cells: list[str], package: Path) -> str:
    """Return the fingerprint of a run."""
    return digest([parameters, [canonical_code(cell) for cell in cells], science_modules(cells, package)])


def digest(content: Any) -> str:
    """Return the SHA-256 of JSON-able content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def science_modules(cells: Iterable[str], package: Path, also: tuple[str, ...] = ()) -> dict[str, str]:
    """Return name -> hash of the package's modules that the cells import, directly or through one another.

    Only these: a module written for another notebook must not rerun this one.
    """
    skipped = set(NOT_SCIENCE) - set(also)
    found: dict[str, str] = {}
    waiting = [name for cell in cells for name in _imported(_tree(cell), PACKAGE)]
    while waiting:
        name = waiting.pop()
        path = _file_of(name, package)
        if path is None or name in found or name.split(".")[0] in skipped:
            continue
        source = path.read_text(encoding="utf-8")
        found[name] = hashlib.sha256(canonical_code(source).encode()).hexdigest()
        inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imported(_tree(source), f"{PACKAGE}.{inside}".rstrip("."))
    return found


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


def _imported(tree: ast.Module | None, inside: str) -> list[str]:
    """Return the names, relative to the package, that a tree may import; `inside` is the package it lies in."""
    names: list[str] = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = inside.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")]


def _file_of(name: str, package: Path) -> Path | None:
    path = package.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
