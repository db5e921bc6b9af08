"""The house: which rooms there are, and that imports between them go down its floors and never up."""

import ast
import json
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
PACKAGE = Path(__file__).resolve().parents[1] / "fragile_lib"
FLOORS = (
    ("tools",),
    ("data", "models", "kernels", "choices", "agreement"),
    ("objectives",),
    ("solvers",),
    ("minimise",),
    ("network",),
    ("estimates", "truths", "rows"),
    ("own",),
)
BESIDE = {"plots": {"tools", "agreement", "choices"}, "study": {"tools", "agreement"}}
ELSEWHERE = {"papermill", "nbclient", "nbformat", "nbconvert", "jinja2", "markupsafe", "yaml", "IPython"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Each module that a file imports, wherever in it and for whatever purpose, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fragile_lib" else [node.module]
        else:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        yield from ((name, node.lineno) for name in names)


def arrows() -> dict[str, dict[str, list[str]]]:
    """{room: {room that it imports: where}}."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = found.setdefault(room_of(path), {})
        for name, line in imported(path):
            if name.startswith("fragile_lib.") and name.split(".")[1] != room_of(path):
                room.setdefault(name.split(".")[1], []).append(f"{path.relative_to(PACKAGE)}:{line}")
    return found


def test_the_rooms_are_those_of_the_plan() -> None:
    inside = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {"__init__"}
    assert inside == {room for floor in FLOORS for room in floor} | set(BESIDE)
    assert len(inside) <= 16 and len(FLOORS) <= 8


def test_imports_go_down_the_floors() -> None:
    """A room imports from floors below its own alone; what stands beside them, from what it is allowed."""
    allowed, below = dict(BESIDE), set()
    for floor in FLOORS:
        allowed |= {room: set(below) for room in floor}
        below |= set(floor)
    wrong = {
        f"{room} -> {other}": places
        for room, others in arrows().items()
        for other, places in others.items()
        if other not in allowed.get(room, set())
    }
    assert not wrong


def test_there_is_no_circle() -> None:
    assert list(TopologicalSorter({room: set(others) for room, others in arrows().items()}).static_order())


def test_kernels_are_seen_by_objectives_alone() -> None:
    assert {room for room, others in arrows().items() if "kernels" in others} <= {"objectives"}


def test_science_knows_nothing_of_notebooks_yaml_or_html() -> None:
    science = {room for floor in FLOORS[1:] for room in floor}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if room_of(path) in science
        for name, line in imported(path)
        if name.split(".")[0] in ELSEWHERE
    ]
    assert not found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short(path: Path) -> None:
    """At most 24 cells, and no code cell but the parameters over 12 lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", ())]
    assert len(cells) <= 24 and max(len(cell["source"]) for cell in code) <= 12
