"""A fingerprint changes with what a result depends on, and with nothing else."""

import pytest

from fragile_lib.study.fingerprint import canonical_code, run_fingerprint, science_modules

MODULE = '"""Doc."""\nfrom . import solvers\n\n\ndef f(x):\n    """Double."""\n    return 2 * x  # twice\n'
CELLS = ["%matplotlib inline\nfrom fragile_lib.influence import f\nfrom fragile_lib import plots", "y = f(1)"]


@pytest.fixture
def package(tmp_path):
    files = {
        "influence": MODULE,
        "solvers": "import fragile_lib.objective\nS = 1\n",
        "objective": "J = 0\n",
        "other": "import fragile_lib.objective\n",
        "plots": "import fragile_lib.other\n",
        "study": "X = 1\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def test_modules_are_those_that_the_notebook_reaches(package):
    assert sorted(science_modules(CELLS, package)) == ["influence", "objective", "solvers"]
    assert "other" in science_modules(CELLS, package, also=("plots",))


@pytest.mark.parametrize(
    ("module", "old", "new", "same"),
    [
        ("influence", "# twice", "# two times", True),
        ("influence", '"""Double."""\n', '"""Return twice x."""\n\n', True),
        ("influence", "2 * x", "(2 *\n        x)", True),
        ("influence", "2 * x", "3 * x", False),
        ("influence", "2 * x", "2.0 * x", False),
        ("objective", "J = 0", "J = 1", False),
        ("other", "import", "X = 1\nimport", True),
        ("plots", "import", "X = 1\nimport", True),
        ("study", "X = 1", "X = 2", True),
    ],
)
def test_change_of_a_module(package, module, old, new, same):
    before = run_fingerprint({"depth": 1}, CELLS, package)
    path = package / f"{module}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert (run_fingerprint({"depth": 1}, CELLS, package) == before) is same


def test_change_of_parameters_and_cells(package):
    before = run_fingerprint({"depth": 1}, CELLS, package)
    assert run_fingerprint({"depth": 2}, CELLS, package) != before
    assert run_fingerprint({"depth": 1}, [CELLS[0], "y = f(2)"], package) != before
    assert run_fingerprint({"depth": 1}, [CELLS[0], "y = f( 1 )  # one"], package) == before


def test_code_that_is_no_python_counts_as_it_stands():
    assert canonical_code("this is ?") == "this is ?"
    assert canonical_code("def f():\n    'only a docstring'") == canonical_code("def f():\n    'another'")
