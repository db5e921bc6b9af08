"""What all tests share: one thread for each process, no display, no settings of a study around them, the order."""

import os

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

# Files whose tests share what takes long and so are one piece of work, by falling seconds; notebooks come after them.
LONGEST = ("report/test_quick_study.py", "test_readme.py")


def pytest_collection_modifyitems(items: list) -> None:
    """The longest pieces of work first, so that no worker is left alone with one of them at the end."""

    def place(item) -> int:
        path = item.path.as_posix()
        found = [i for i, end in enumerate(LONGEST) if path.endswith(f"tests/{end}")]
        return found[0] if found else len(LONGEST) + (path.endswith(".py"))

    items.sort(key=place)
