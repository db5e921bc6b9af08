"""A fingerprint changes with what a result depends on, and with nothing else."""

import pytest

from fragile_lib.study.fingerprint import canonical_code, page_fingerprint, run_fingerprint, science_code

MODULE = """'Doc.'
from fragile_lib import agreement as evaluation
from fragile_lib import solvers
from fragile_lib.objectives.base import J


def f(x):
    'Double.'
    return helper(2 * x) * evaluation.compare(J)  # twice


def helper(x):
    return solvers.Exact(x)


def unused(x):
    return x
"""
CELLS = ["%matplotlib inline\nfrom fragile_lib.influence import f\nfrom fragile_lib import plots", "y = f(depth)"]


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__": "",
        "influence": MODULE,
        "solvers/__init__": "from fragile_lib.solvers.exact import Exact\nfrom fragile_lib.solvers.other import Cg\n",
        "solvers/exact": "from .base import check\n\n\nclass Exact:\n    def solve(self):\n        return check(1)\n",
        "solvers/base": "LIMIT = 1\n\n\ndef check(x):\n    return x < LIMIT\n\n\ndef other(x):\n    return x\n",
        "solvers/other": "class Cg:\n    pass\n",
        "objectives/base": "J = 0\nprint('loaded')\n",
        "agreement": "def compare(x):\n    return x\n\n\ndef another(x):\n    return x\n",
        "other": "import fragile_lib.objectives.base\n",
        "plots": "import fragile_lib.other\n\n\ndef show():\n    return 1\n",
        "study": "X = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def fingerprint(cells, package, **parameters):
    return run_fingerprint({"depth": 1, **parameters}, cells, package)


def test_definitions_are_those_that_the_notebook_reaches(package):
    expected = ["agreement:compare", "influence:f", "influence:helper", "objectives.base:", "objectives.base:J"]
    expected += ["solvers.base:LIMIT", "solvers.base:check", "solvers.exact:Exact"]
    assert sorted(science_code(CELLS, package)) == expected
    assert "plots:show" in science_code([*CELLS, "plots.show()"], package, also=("plots",))


def test_a_module_used_as_an_object_counts_whole(package):
    cells = ["from fragile_lib import agreement as evaluation\nname = 'another'\ngetattr(evaluation, name)"]
    assert sorted(science_code(cells, package)) == ["agreement:another", "agreement:compare"]
    cells = ["import fragile_lib.solvers.base as b\nb.other(1)", "import fragile_lib.agreement"]
    assert sorted(science_code(cells, package)) == ["solvers.base:other"]
    assert "agreement:another" in science_code([*cells, "fragile_lib.agreement.another(1)"], package)


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        ("influence", "# twice", "# two times", True),
        ("influence", "'Double.'\n", "'Return twice x.'\n\n", True),
        ("influence", "2 * x", "(2 *\n        x)", True),
        ("influence", "2 * x", "3 * x", False),
        ("influence", "2 * x", "2.0 * x", False),
        ("influence", "return x\n", "return 2 * x\n", True),
        ("influence", "solvers.Exact(x)", "solvers.Exact(x, 1)", False),
        ("objectives/base", "J = 0", "J = 1", False),
        ("objectives/base", "'loaded'", "'imported'", False),
        ("solvers/base", "LIMIT = 1", "LIMIT = 2", False),
        ("solvers/base", "return x\n", "return 2 * x\n", True),
        ("solvers/exact", "check(1)", "check(2)", False),
        ("solvers/other", "pass", "x = 1", True),
        ("agreement", "def compare(x):\n    return x", "def compare(x):\n    return -x", False),
        ("agreement", "def another(x):\n    return x", "def another(x):\n    return -x", True),
        ("other", "import", "X = 1\nimport", True),
        ("plots", "import", "X = 1\nimport", True),
        ("study", "X = 1", "X = 2", True),
    ],
)
def test_change_of_a_module(package, module, old, new, same):
    before = fingerprint(CELLS, package)
    path = package / f"{module}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (fingerprint(CELLS, package) == before) is same


def test_change_of_parameters_and_cells(package):
    before = fingerprint(CELLS, package)
    assert fingerprint(CELLS, package, depth=2) != before
    assert fingerprint([CELLS[0], "y = f(2 * depth)"], package) != before
    assert fingerprint([CELLS[0], "y = f( depth )  # one"], package) == before
    assert fingerprint([*CELLS, "y ="], package) != before


def test_code_that_is_no_python_counts_as_it_stands():
    assert canonical_code("this is ?") == "this is ?"
    assert canonical_code("def f():\n    'only a docstring'") == canonical_code("def f():\n    'another'")


@pytest.mark.parametrize(
    ("more", "given", "same"),
    [
        ("plots.show(plots.figure('new', y))", {}, True),
        ("print(y)\ny.style.format(2)\ndisplay(y)", {}, True),
        ("y.append(3)", {}, False),
        ("from fragile_lib.agreement import another", {}, True),
        ("if groups:\n    y += f(groups)", {"groups": 0}, True),
        ("if groups:\n    y += f(groups)", {"groups": 2}, False),
        ("if groups:\n    y += 1\nelse:\n    y += 2", {"groups": 0}, False),
        ("groups = 3\nif groups:\n    y += f(groups)", {"groups": 0}, False),
        ("for one in longer:\n    y += f(one)", {"longer": []}, True),
        ("for one in longer:\n    y += f(one)", {"longer": [1]}, False),
        ("", {"unnamed": 3}, True),
    ],
)
def test_what_a_run_does_not_execute_or_name_does_not_count(package, more, given, same):
    before = fingerprint(CELLS, package)
    assert (fingerprint([*CELLS, more], package, **given) == before) is same
    assert page_fingerprint([], [*CELLS, more], package) != page_fingerprint([], CELLS, package)


REGISTRY = """from fragile_lib.solvers import Cg, Exact
from fragile_lib.agreement import another

SOLVERS = {"exact": Exact, "cg": Cg, "more": another}
ESTIMATORS = {**SOLVERS}


def estimate(name):
    return ESTIMATORS[name], SOLVERS["more"]
"""


@pytest.mark.parametrize("asked", ["f(name)", "f('cg')"])
def test_of_a_registry_only_the_named_entries_count(package, asked):
    (package / "estimates").mkdir()
    (package / "estimates" / "by_name.py").write_text(REGISTRY)
    cells = [f"from fragile_lib.estimates.by_name import estimate as f\ny = {asked}"]
    exact, cg, other = (fingerprint(cells, package, name=name) for name in ("exact", "cg", "other"))
    assert len({exact, cg, other}) == (3 if "name" in asked else 1)
    for file, old, new, counts in [
        ("solvers/other", "pass", "x = 1", "cg"),
        ("agreement", "another(x):", "another(x, y=1):", "more"),
        ("estimates/by_name", '"more": another', '"more": another, "new": another', "nothing"),
    ]:
        path = package / f"{file}.py"
        path.write_text(path.read_text().replace(old, new))
        changed = fingerprint(cells, package, name="exact") != exact, fingerprint(cells, package, name="cg") != cg
        expected = {"cg": ("cg" in asked, True), "more": (True, True), "nothing": (False, False)}[counts]
        assert changed == expected
        exact, cg = (fingerprint(cells, package, name=name) for name in ("exact", "cg"))
