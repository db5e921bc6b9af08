"""What all tests share: one thread for each process, no display, no settings of a study around them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
for name in [name for name in os.environ if name.startswith("FRAGILE_")]:
    del os.environ[name]
