"""The study machinery: parameters -> runs -> executed notebooks -> records -> table -> report.

It knows nothing of influence functions. Names by room:

* `declared`     one parameter: type, range, meaning
* `params`       the grids of params/*.yaml, checked and expanded to runs; `check_parameters` for notebooks
* `fingerprint`  what a finished result depends on, as one hash
* `plan`         which runs are up to date, which are to be run
* `engine`       Snakemake, started, watched and ended
* `execute`      one notebook through papermill
* `run`          one run: executed beside the old result, put in place only when it is complete
* `record`       the result record that a notebook writes, and how it is read back
* `collect`      all records of a profile -> results.csv
* `pages`        every notebook executed once more with the grid's results in view
* `publish`      the study of record under reports/
* `claims`       the paper's claims, judged by rules on the table
* `report`       HTML
* `study`        all of it in order; `python -m fragile_lib.study` is its command line
"""

from fragile_lib.study.collect import read_points, read_results
from fragile_lib.study.params import check_parameters
from fragile_lib.study.record import record

__all__ = ["check_parameters", "read_points", "read_results", "record"]
