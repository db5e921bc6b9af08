"""The HTML report of a study: `build_report(source, out, params_dir)` renders records and notebooks."""

from fragile_lib.study.report.build import build_report as build_report
