"""What a finished result depends on, as one hash: what its run executes, and the parameters that this names.

Code is hashed by its syntax tree without docstrings, so a comment, a docstring or another line break reruns nothing.
What a run does not execute or does not record is left out: cells' statements that only show something, branches that
its parameters switch off, parameters that nothing left names, the rooms that do not change numbers, definitions that
nothing reaches (`tools.reached`), and entries of a registry whose name stands nowhere. So a new estimator, truth or
figure, or a new parameter that is off, reruns nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fragile_lib.tools.files import json_digest
from fragile_lib.tools.reached import PACKAGE, definition, reached

NOT_SCIENCE = ("study", "plots", "__init__", "tools")
# Dictionaries from which a run takes entries by name; a name stands as a text in what the run executes or is given.
REGISTRIES = frozenset({"estimates:ESTIMATORS", "estimates.by_name:SOLVERS", "truths:TRUTHS"})
SHOWS = ("plots", "display", "print")


def run_fingerprint(parameters: Mapping[str, Any], cells: list[str], package: Path) -> str:
    """Return the fingerprint of a run, from all its parameters and its notebook's code without the parameters cell."""
    trees = [_tree(cell) for cell in cells]
    unread = [cell for cell, tree in zip(cells, trees, strict=True) if tree is None]
    statements = [statement for tree in trees if tree is not None for statement in tree.body]
    fixed = _fixed(parameters, statements)
    executed = ast.Module([s for s in statements if not _idle(s, fixed)], [])
    named = {node.id for node in ast.walk(executed) if isinstance(node, ast.Name)}
    used = {name: value for name, value in parameters.items() if name in named}
    given = frozenset(_texts(used)) & _entries(package)  # few differ, so that what is reached is found once for many
    own = ast.Module([s for s in executed.body if not _package_import(s)], [])
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in sorted(package.rglob("*.py")))  # for the cache alone
    return json_digest([used, unread, _canonical(own), _science(ast.unparse(executed), given, package, stamp)])


def page_fingerprint(given: list[Any], cells: list[str], package: Path) -> str:
    """Return the fingerprint of an executed page: its figures are part of it, and every statement of its cells."""
    return json_digest(
        [given, [canonical_code(cell) for cell in cells], science_code(cells, package, ("plots",), None)]
    )


def science_code(
    cells: list[str], package: Path, also: tuple[str, ...] = (), given: frozenset[str] | None = frozenset()
) -> dict[str, str]:
    """Return `module:name` -> hash of the definitions that the cells reach in the package (see `reached`).

    Args:
        cells: code of a notebook.
        package: folder of the library.
        also: rooms that count although they change no numbers.
        given: texts by which entries of `REGISTRIES` are asked for, beside those in the code; None for all entries.
    """
    trees = [tree for cell in cells if (tree := _tree(cell)) is not None]
    skipped = frozenset(NOT_SCIENCE) - set(also)
    if given is None:
        return _hashed(reached(trees, package, skipped))
    names, before = _entries(package), None
    asked = names & set(given).union(*map(_constants, trees))
    while asked != before:  # what is reached names further entries, and those reach further
        before = asked
        found = reached(trees, package, skipped, dict.fromkeys(REGISTRIES, asked))
        nodes = (node for place in found.keys() - REGISTRIES for node in found[place])
        asked = asked | (names & set().union(*map(_constants, nodes)))
    return _hashed(found)


def canonical_code(source: str) -> str:
    """Return a text that changes only with what the code does, equal under every supported Python version."""
    tree = _tree(source)
    return source if tree is None else _canonical(tree)


@lru_cache(maxsize=64)
def _science(code: str, given: frozenset[str], package: Path, _stamp: tuple) -> dict[str, str]:
    return science_code([code], package, given=given)


def _entries(package: Path) -> frozenset[str]:
    """The names in all registries."""
    places = (place.split(":") for place in REGISTRIES)
    nodes = (node for module, name in places for node in definition(module, name, package))
    return frozenset().union(*map(_constants, nodes))


def _hashed(found: Mapping[str, list[ast.stmt]]) -> dict[str, str]:
    return {place: json_digest([_node_hash(node) for node in nodes]) for place, nodes in found.items() if nodes}


@lru_cache(maxsize=20_000)
def _node_hash(node: ast.stmt) -> str:
    return json_digest(_canonical(node))


def _tree(source: str) -> ast.Module | None:
    """Return the syntax tree of a cell or module, IPython's magic lines left out; None where Python cannot read it."""
    lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        return ast.parse("\n".join(lines))
    except (SyntaxError, RecursionError):
        return None


def _fixed(parameters: Mapping[str, Any], statements: list[ast.stmt]) -> dict[str, Any]:
    """The parameters that no statement binds anew, so that what stands under `if parameter:` is known beforehand."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    return {name: value for name, value in parameters.items() if name not in bound}


def _idle(statement: ast.stmt, fixed: Mapping[str, Any]) -> bool:
    """Whether a statement only shows something, or is switched off by a parameter."""
    if isinstance(statement, ast.Expr):
        chain = [node for node in ast.walk(statement) if isinstance(node, ast.Attribute) and node.attr == "style"]
        return bool(chain) or _root(statement.value) in SHOWS
    decides = {ast.If: "test", ast.For: "iter"}.get(type(statement))
    name = getattr(statement, decides) if decides else None
    off = isinstance(name, ast.Name) and name.id in fixed and not fixed[name.id]
    return off and not statement.orelse  # type: ignore[attr-defined]


def _root(node: ast.expr) -> str | None:
    """`a` of `a.b(c).d[e]`."""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _package_import(statement: ast.stmt) -> bool:
    """Whether a statement imports from the package: what its names stand for is told by what they reach."""
    if isinstance(statement, ast.Import):
        return all(alias.name.split(".")[0] == PACKAGE for alias in statement.names)
    return isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] == PACKAGE


@lru_cache(maxsize=20_000)
def _constants(node: ast.AST) -> frozenset[str]:
    """The texts that stand in code."""
    found = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))
    return frozenset(value for value in found if isinstance(value, str))


def _texts(value: Any) -> Iterator[str]:
    """The texts that stand in JSON-able content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
            yield from _texts(one)


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
