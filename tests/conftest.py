"""What all tests share: one thread for each process, no display, no settings of a study around them, the order.

Notebooks that are validated beside the tests have a few parameters of their own (`SMALLER`); `make test-notebooks` runs
them as they open.
"""

import os
import tempfile
from pathlib import Path

import matplotlib
from llvmlite import binding

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not binding.get_host_cpu_features().get("avx512f", False):
    # The AVX2 code of oneDNN 3.12 (torch 2.14) writes out of bounds in the weights' gradient of a strided 1x1
    # convolution of fewer than 8 channels, channels last. Networks as narrow as that exist in tests alone.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")
matplotlib.use("Agg")  # of this process alone: a notebook's kernel keeps its own
for name in [name for name in os.environ if name.startswith("FRAGILE_")]:
    del os.environ[name]

RECORDS = Path(__file__).parents[1] / "reports" / "records"
# Files that are one long piece of work each: first those whose tests share what takes longest, then what would else be
# left for the end. Notebooks come after them.
LONGEST = ("report/test_quick_study.py", "test_readme.py", "study/test_run.py", "science/test_photographs.py")
LONGEST += ("test_benchmarks.py", "test_mutations.py")
# Three networks of three data sets: for each pair of networks a page's rules are fitted anew.
FEW = ("iris-relu-d2-w5-wd0", "small_mnist-wd0.03-s0", "mnist-lenet-n2000-s0")
SMALLER = {
    "believe": {"grid_results": FEW},
    "mnist_cifar10": {"n_train": 100, "test_count": 1, "train_count": 5},
    "iris": {"seeds": [0, 1], "repeats": 1},
    "small_mnist": {"steps": 200, "test_count": 1, "train_count": 4, "repeats": 1},
    "your_model": {"steps": 200, "train_count": 3},
}


def few_results(names: tuple[str, ...], place: Path) -> str:
    """Make a study of some committed records in a folder; return its table."""
    from fragile_lib.study.collect import collect

    (place / "records").mkdir()
    for name in names:
        (place / "records" / name).symlink_to(RECORDS / name, target_is_directory=True)
    count, told = collect(((RECORDS / name / "result.json") for name in names), place / "results.csv")
    assert count == len(names), told
    return str(place / "results.csv")


def make_smaller(cell, parameters: dict, config) -> None:
    """Add assignments to the parameters cell of a notebook."""
    for name, value in parameters.items():
        assert f"\n{name} = " in f"\n{cell.source}", f"{name} is no parameter"
        if value is FEW:
            folder = tempfile.TemporaryDirectory()
            config.add_cleanup(folder.cleanup)
            value = few_results(FEW, Path(folder.name))
        cell.source += f"\n{name} = {value!r}"


def pytest_collection_modifyitems(config, items: list) -> None:
    """The longest pieces of work first, so that no worker is left alone with one of them at the end."""

    def place(item) -> int:
        path = item.path.as_posix()
        found = [i for i, end in enumerate(LONGEST) if path.endswith(f"tests/{end}")]
        return found[0] if found else len(LONGEST) + (path.endswith(".py"))

    items.sort(key=place)
    for item in items:
        if item.name == "Cell 0" and item.path.stem in SMALLER:
            make_smaller(item.cell, SMALLER[item.path.stem], config)
