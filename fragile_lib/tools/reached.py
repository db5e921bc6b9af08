"""Which definitions of this package some code reaches, directly or through one another.

By definition and not by module: a function or class counts when a reached one names it. Statements that are neither
definitions nor imports count wherever their module is imported, since importing runs them.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path

PACKAGE = "fragile_lib"
Place = tuple[str, str | None]  # (module relative to the package, name in it, or None for the module itself)


@dataclass(eq=False)
class Module:
    """A module, taken apart: its definitions by name, what its imports bind, and all other statements."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    bindings: dict[str, Place] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)
    loose: list[ast.stmt] = field(default_factory=list)


def reached(
    cells: list[ast.Module],
    package: Path,
    skipped: frozenset[str],
    registries: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[ast.stmt]]:
    """Return `module:name` -> the statements that define it, for everything that the cells reach.

    `module:` alone holds a module's loose statements. Modules (or folders of them) in `skipped` are left out; of a
    dictionary `module:name` among `registries` only the entries under the given keys are there.
    """
    whole = ast.Module([statement for tree in cells for statement in tree.body], [])
    notebook = _taken_apart(whole, "", is_package=True, definitions=False)
    found: dict[str, list[ast.stmt]] = {}
    waiting: list[Place] = [(name, "") for name in notebook.imported]  # "" is no name: loose statements only
    waiting += [place for tree in cells for place in _references(tree, notebook, package)]
    seen: set[Place] = set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        name, attribute = _followed(place, package)
        if name.split(".")[0] in skipped or (module := _module(name, package)) is None:
            continue
        if f"{name}:" not in found:
            found[f"{name}:"] = module.loose
            waiting += [(other, "") for other in module.imported]
            waiting += [place for node in module.loose for place in _references(node, module, package)]
        for one in module.definitions if attribute is None else [attribute]:
            nodes = module.definitions.get(one, [])
            if (keys := (registries or {}).get(f"{name}:{one}")) is not None:
                nodes = [_only(node, keys) for node in nodes]
            if f"{name}:{one}" in found or not nodes:
                continue
            found[f"{name}:{one}"] = nodes
            waiting += [place for node in nodes for place in _references(node, module, package)]
    return found


def definition(module: str, name: str, package: Path) -> list[ast.stmt]:
    """Return the statements that define a name in a module; none where there is no such module or name."""
    found = _module(module, package)
    return found.definitions.get(name, []) if found else []


def _only(node: ast.stmt, keys: Collection[str]) -> ast.stmt:
    """Return the definition of a dictionary with those entries alone whose key is no text, or one of `keys`."""
    node = copy.copy(node)
    if isinstance(whole := getattr(node, "value", None), ast.Dict):
        pairs = zip(whole.keys, whole.values, strict=True)
        kept = [(k, v) for k, v in pairs if not isinstance(k, ast.Constant) or k.value in keys]
        node.value = ast.Dict([k for k, _ in kept], [v for _, v in kept])  # type: ignore[attr-defined]
    return node


def _followed(place: Place, package: Path) -> Place:
    """Return where a place really lies: through re-exports, to submodules, or the whole module where it is unknown."""
    name, attribute = place
    for _ in range(20):
        module = _module(name, package)
        if module is None or not attribute or attribute in module.definitions:
            break
        inner = f"{name}.{attribute}".lstrip(".")
        if attribute in module.bindings:
            name, attribute = module.bindings[attribute]
        else:
            name, attribute = inner if _file_of(inner, package) else name, None
    return name, attribute


@lru_cache(maxsize=20_000)
def _references(node: ast.AST, module: Module, package: Path) -> frozenset[Place]:
    """Return the places of the package that a piece of code names."""
    return frozenset(_named(node, module, package))


def _named(node: ast.AST, module: Module, package: Path) -> Iterator[Place]:
    parts = _dotted(node)
    if len(parts) == 1 and parts[0] in module.definitions:
        yield module.name, parts[0]
    elif parts and parts[0] in module.bindings:
        name, attribute = module.bindings[parts[0]]
        for part in parts[1:]:
            inner = f"{name}.{attribute}".lstrip(".") if attribute else name
            if attribute and not _file_of(inner, package):
                break
            name, attribute = inner, part
        yield name, attribute
    else:
        for child in ast.iter_child_nodes(node):
            yield from _named(child, module, package)


def _dotted(node: ast.AST) -> list[str]:
    """Return the parts of `a.b.c`, or nothing where the expression does not start with a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (parts := _dotted(node.value)):
        return [*parts, node.attr]
    return []


def _module(name: str, package: Path) -> Module | None:
    path = _file_of(name, package)
    return None if path is None else _parsed(name, path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _parsed(name: str, path: Path, _changed: int) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return _taken_apart(tree, name, is_package=path.name == "__init__.py")


def _taken_apart(tree: ast.Module, name: str, is_package: bool, definitions: bool = True) -> Module:
    module, inside = Module(name), name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _bind(node, module, inside)
    for node in tree.body if definitions else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            module.definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for one in (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                module.definitions.setdefault(one, []).append(node)
        elif not _silent(node):
            module.loose.append(node)
    return module


def _silent(node: ast.stmt) -> bool:
    """Whether a statement is an import, a docstring, or seen by type checkers only."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Import | ast.ImportFrom) or docstring or typing


def _bind(node: ast.Import | ast.ImportFrom, module: Module, inside: str) -> None:
    """Note what an import of the package binds, and which of its modules it runs."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == PACKAGE:
                target = alias.name.removeprefix(PACKAGE).lstrip(".")
                module.imported.append(target)
                module.bindings[alias.asname or PACKAGE] = (target if alias.asname else "", None)
        return
    full = resolve_name("." * node.level + (node.module or ""), f"{PACKAGE}.{inside}".rstrip("."))
    if full.split(".")[0] != PACKAGE:
        return
    base = full.removeprefix(PACKAGE).lstrip(".")
    module.imported.append(base)
    for alias in node.names:
        module.bindings[alias.asname or alias.name] = (base, alias.name)


def _file_of(name: str, package: Path) -> Path | None:
    path = package.joinpath(*name.split(".")) if name else package
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    return path.with_suffix(".py") if name and path.with_suffix(".py").is_file() else None
