"""Build the report: render everything into a temporary folder, then replace the published files one by one.

Whatever goes wrong while rendering, the published report stays as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fragile_lib.agreement import MIN_SEEDS, RESAMPLES
from fragile_lib.study import claim_parts
from fragile_lib.study.claims import Verdict, evaluate_claims
from fragile_lib.study.params import load_spec
from fragile_lib.study.report import tables
from fragile_lib.study.report.notebook import CLAIM_TAG, Page, figure_html, render_notebook
from fragile_lib.study.report.source import Planner, Run, Study, read_study
from fragile_lib.study.yaml_file import load_yaml

GENERATOR = "fragile_lib report"
RESULTS = "results.csv"


def build_report(source: Path, out: Path, params_dir: Path, planner: Planner | None = None) -> Path:
    """Render the study in `source` (runs/<profile> or reports/records) into `out`; return out/index.html.

    `planner(params_dir, profile)` gives the planned run ids by notebook, so that missing runs are shown.
    Raises `InputError` where `source` is no folder or a file under `params_dir` is malformed; a broken record or
    notebook is named in the report instead.
    """
    source, out, params_dir = Path(source), Path(out), Path(params_dir)
    study = read_study(source, params_dir, planner or planned_runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(prefix=".report-", dir=out.parent))
    try:
        _render(study, built, out, params_dir)
        _publish(built, out)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return out / "index.html"


def planned_runs(params_dir: Path, profile: str) -> dict[str, list[str]]:
    """Run ids that the parameter files plan for a profile, by notebook."""
    paths = [path for path in sorted(params_dir.glob("*.yaml")) if "notebook" in load_yaml(path)]
    specs = {path.stem: load_spec(path) for path in paths}
    return {name: [r.run_id for r in spec.runs(profile)] for name, spec in specs.items() if profile in spec.profiles}


def _render(study: Study, built: Path, out: Path, params_dir: Path) -> None:
    pages = _notebook_pages(study)
    runs = _run_pages(study, set(pages))
    verdicts = evaluate_claims(study.results, study.claims)
    environment = _environment(study, pages)
    _write_results(study, built, out)
    for name, page in pages.items():
        _write(built / f"{name}.html", environment, "notebook.html.j2", page=page, name=name, root="", run=None)
    for run_id, page in runs.items():
        run = next(r for r in study.runs if r.run_id == run_id)
        path = built / "run" / f"{run_id}.html"
        _write(path, environment, "notebook.html.j2", page=page, name=None, root="../", run=run)
    _write(
        built / "index.html",
        environment,
        "index.html.j2",
        root="",
        name="index",
        verdicts=verdicts,
        paragraph=tables.verdict_paragraph(study, verdicts),
        interval_words=tables.interval_words(verdicts),
        evidence={v.claim.id: _evidence(v, pages) for v in verdicts},
        figures=[(name, f) for name, page in pages.items() for f in page.figures if f.headline],
        groups=tables.run_groups(study),
        run_link=_run_links(study, runs, out),
        summary=tables.summary_table(study),
        provenance=tables.provenance(study),
        rerun=_rerun(study, params_dir),
        seeds=_seeds(study),
    )


def _notebook_pages(study: Study) -> dict[str, Page]:
    names = set(study.pages)
    pages = {}
    for name, path in study.pages.items():
        try:
            pages[name] = render_notebook(path, _local_links(names, ""))
            study.problems += [f"{name}: shown as TeX, not as math: {tex}" for tex in pages[name].unconverted]
        except ValueError as error:
            study.problems.append(f"The page of {name} is missing: {error}")
    return pages


def _run_pages(study: Study, names: set[str]) -> dict[str, Page]:
    pages = {}
    for run in study.runs:
        path = study.source / run.run_id / "run.ipynb"
        if path.is_file():
            try:
                pages[run.run_id] = render_notebook(path, _local_links(names, "../"))
            except ValueError as error:
                study.problems.append(f"{run.run_id}: {error}")
    return pages


def _local_links(names: set[str], root: str) -> Callable[[str], str | None]:
    """Links between notebooks lead to their pages; other files of the repository are not part of the report."""

    def resolve(href: str) -> str | None:
        path, _, _ = href.partition("#")
        name = Path(path).stem
        return f"{root}{quote(name)}.html" if path.endswith((".ipynb", ".html")) and name in names else None

    return resolve


def _evidence(verdict: Verdict, pages: dict[str, Page]) -> tuple[str, str]:
    """Address and text of the link beside a verdict: the tagged cell, else the page, else the results table."""
    page = pages.get(verdict.claim.notebook)
    if verdict.verdict == "not run":
        return "", ""
    if page is None:
        return "#results", "results"
    anchor = f"{CLAIM_TAG}{verdict.claim.id}"
    name = quote(verdict.claim.notebook)
    return f"{name}.html" + (f"#{anchor}" if anchor in page.anchors else ""), "evidence"


def _run_links(study: Study, pages: dict[str, Page], out: Path) -> dict[str, tuple[str, str]]:
    """Where the run matrix leads: the page of the run, else its record on disk."""
    links = {}
    for run in study.runs:
        record = study.source / run.run_id / "result.json"
        if run.run_id in pages:
            links[run.run_id] = (f"run/{quote(run.run_id)}.html", "notebook")
        elif run.record:
            path = os.path.relpath(record.resolve(), out.resolve())
            links[run.run_id] = (quote(Path(path).as_posix()), "record")
    return links


def _rerun(study: Study, params_dir: Path) -> dict[str, str]:
    """The names that the commands of the report need."""
    root = params_dir.resolve().parent
    source = study.source.resolve()
    folder = source.relative_to(root).as_posix() if source.is_relative_to(root) else str(study.source)
    finished = [run for run in study.runs if run.record] or [Run("RUN_ID", "iris")]
    return {"folder": folder, "run_id": finished[0].run_id, "notebook": finished[0].notebook}


def _seeds(study: Study) -> str:
    counts = sorted({len(record.get("seeds") or []) for record in study.records} - {0})
    if not counts:
        return ""
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _write_results(study: Study, built: Path, out: Path) -> None:
    target = out / RESULTS
    if study.results_path is None:
        study.results.to_csv(built / RESULTS, index=False)
    elif not (target.exists() and target.samefile(study.results_path)):
        shutil.copyfile(study.results_path, built / RESULTS)


def _environment(study: Study, pages: dict[str, Page]) -> Environment:
    environment = Environment(
        loader=PackageLoader("fragile_lib.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = claim_parts.number
    environment.filters["duration"] = tables.duration
    environment.filters["missing"] = pd.isna
    environment.globals.update(
        study=study,
        settings=study.settings,
        pages=pages,
        words=tables.VERDICT_WORDS,
        state_words=tables.STATE_WORDS,
        failure_text=tables.failure_text,
        setting_text=tables.setting_text,
        run_outcomes=tables.run_outcomes,
        figure_html=lambda figure, anchor: Markup(figure_html(figure, anchor)),
        quote=quote,
        generator=GENERATOR,
        rules={
            "tolerance": claim_parts.TOLERANCE,
            "range_tolerance": claim_parts.RANGE_TOLERANCE,
            "min_change": claim_parts.MIN_CHANGE,
            "min_seeds": MIN_SEEDS,
            "resamples": f"{RESAMPLES:,}",
        },
    )
    return environment


def _write(path: Path, environment: Environment, template: str, **context: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment.get_template(template).render(**context), encoding="utf-8")


def _publish(built: Path, out: Path) -> None:
    """Move the finished files into place, the index last; remove pages of an earlier report that are gone."""
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    files.sort(key=lambda path: path == Path("index.html"))
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(built / path, out / path)
    for old in [*out.glob("*.html"), *out.glob("run/*.html")]:
        if old.relative_to(out) not in files and _is_ours(old):
            old.unlink()


def _is_ours(page: Path) -> bool:
    with page.open(encoding="utf-8", errors="replace") as file:
        return f'name="generator" content="{GENERATOR}"' in file.read(2000)
