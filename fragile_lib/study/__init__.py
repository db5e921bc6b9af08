"""The study machinery: parameters -> runs -> executed notebooks -> records -> table -> report.

It knows nothing of influence functions. In order: `params` (declared, checked, expanded to runs), `fingerprint` (what a
result depends on, as one hash), `plan` (which runs are to be run), `execute` (papermill), `run` (runs and pages, put in
place only when complete), `record` (what a notebook writes), `collect` (results.csv), `claims` (the paper's, judged by
rules on the table), `report` (HTML), `study` (all of it; `python -m fragile_lib.study` is its command line).
"""

import warnings

from fragile_lib.study.collect import read_points, read_results
from fragile_lib.study.execute import LIBRARY_WARNINGS
from fragile_lib.study.params import check_parameters
from fragile_lib.study.record import record

__all__ = ["check_parameters", "read_points", "read_results", "record"]

# A notebook that is opened by itself has no environment that leaves them out.
for text, kind in LIBRARY_WARNINGS.items():
    warnings.filterwarnings("ignore", text, kind)
