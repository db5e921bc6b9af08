"""Build the report: render everything into a temporary folder, then replace the published files one by one.

Whatever goes wrong while rendering, the published report stays as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from fragile_lib import agreement
from fragile_lib.study import claims
from fragile_lib.study.claims import evaluate_claims
from fragile_lib.study.files import PACKED, packed_text, shown, stored
from fragile_lib.study.notebook_file import FOLDER
from fragile_lib.study.report import explore, tables
from fragile_lib.study.report.markup import ENVIRONMENT, bold, mathml
from fragile_lib.study.report.notebook import Page, render_notebook
from fragile_lib.study.report.peers import standings
from fragile_lib.study.report.source import Run, Study, read_study
from fragile_lib.study.report.whole import references
from fragile_lib.tools.processes import say

GENERATOR = "fragile_lib report"
LEAD = "lead.png"
PEERS = Path("reports", "peers.json")  # of the project's root: what `make bench-peers` measured
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the order that the records have
ENVIRONMENT.filters.update(
    number=claims.number, duration=tables.duration, quote=quote, math=lambda tex: Markup(mathml(tex)), bold=bold
)
ENVIRONMENT.globals.update(
    tables=tables, words=tables.VERDICT_WORDS, claims=claims, agreement=agreement, generator=GENERATOR
)


def build_report(source: Path, out: Path, params_dir: Path) -> Path:
    """Render the study in `source` (runs/<profile> or reports/records) into `out`; return out/index.html.

    Raises `InputError` where `source` is no folder or a file under `params_dir` is malformed; a broken record or
    notebook is named in the report instead.
    """
    source, out, params_dir = Path(source), Path(out), Path(params_dir)
    study = read_study(source, params_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(prefix=".report-", dir=out.parent))
    try:
        _render(study, built, out, params_dir)
        _publish(built, out)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    say(*study.problems)
    return out / "index.html"


def _render(study: Study, built: Path, out: Path, params_dir: Path) -> None:
    runs = {run.run_id: run for run in study.runs}
    notebooks = {run_id: study.source / run_id / "run.ipynb" for run_id in runs}
    notebooks = {run_id: path for run_id, path in notebooks.items() if path.is_file()}
    pages = _pages(study, study.pages, "")
    of_runs = _pages(study, notebooks, "../")
    measured = params_dir.parent / PEERS
    peers = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None
    table = study.results_path

    def write(path: str, template: str, **context: object) -> None:
        (built / path).parent.mkdir(parents=True, exist_ok=True)
        shared = {"study": study, "settings": study.settings, "pages": pages, "root": "", "name": None, "run": None}
        shared |= {"peers": peers, "table": table.name if table else "results.csv"}
        text = ENVIRONMENT.get_template(template).render({**shared, **context})
        (built / path).write_text(text, encoding="utf-8")

    if table and table.resolve() != (out / table.name).resolve():
        shutil.copyfile(table, built / table.name)
    for name, page in pages.items():
        write(f"{name}.html", "notebook.html.j2", page=page, name=name)
    for run_id, page in of_runs.items():
        write(f"run/{run_id}.html", "notebook.html.j2", page=page, root="../", run=runs[run_id])
    for figure in (figure for page in [*pages.values(), *of_runs.values()] for figure in page.figures):
        (built / FOLDER).mkdir(exist_ok=True)
        (built / FOLDER / figure.name).write_bytes(figure.content)
        if figure.rows:
            kept = packed_text(figure.rows, out / FOLDER / figure.table)
            (built / FOLDER / figure.table).write_bytes(kept)
    of_index = {
        "verdicts": evaluate_claims(study.results, study.claims),
        "figures": [(name, f) for name, page in pages.items() for f in page.figures if f.headline],
        "known": set(runs),
    }
    if of_index["figures"]:  # under a name that does not change, for the project's own first page
        (built / FOLDER / LEAD).write_bytes(of_index["figures"][0][1].content)
    links = {}  # where the run matrix leads: the page of a run, else its record on disk
    for run_id in runs:
        record = stored(study.source.resolve() / run_id / "result.json")
        if run_id in of_runs:
            links[run_id] = f"run/{quote(run_id)}.html"
        elif runs[run_id].record:
            links[run_id] = quote(Path(os.path.relpath(record, out.resolve())).as_posix())
    of_rerun = {
        "example": next((run for run in study.runs if run.record), Run("RUN_ID", "iris")),
        "references": references(params_dir.parent / "references.bib"),
        "folder": shown(study.source.resolve(), params_dir.resolve().parent),
    }
    sets = explore.point_sets(study)
    to_explore = {
        "sets": sets,
        "names": explore.names(study, sets),
        "static_points": explore.static_points(sets[0]) if sets else [],
        "dampings": explore.damping_frames(study),
    }
    contexts = {"runs": {"run_link": links}, "map": {}, "explore": to_explore, "reproducibility": of_rerun}
    if peers:
        contexts["peers"] = {"standings": standings(peers["cases"])}
    for name, context in {**contexts, "index": of_index}.items():
        write(f"{name}.html", f"{name}.html.j2", name=name, **context)


def _pages(study: Study, notebooks: dict[str, Path], root: str) -> dict[str, Page]:
    """Render notebooks; what cannot be read, or shown as math, is named in the report."""

    def local(href: str, own: str) -> str | None:
        """Links between notebooks lead to their pages; other files of the repository are not part of the report."""
        path = Path(href.partition("#")[0])
        if path.suffix in (".html", ".ipynb") and path.stem == own:
            return ""  # of a notebook to its page, which this is
        if path.name == "runs.html" or (path.parent.name, path.suffix) == (FOLDER, PACKED):
            return href  # of the report's own making, below its figures
        known = path.suffix in (".ipynb", ".html") and path.stem in study.pages
        return f"{root}{quote(path.stem)}.html" if known else None

    pages = {}
    for name, path in notebooks.items():
        try:
            known = {run.run_id for run in study.runs}
            pages[name] = render_notebook(path, name, root, partial(local, own=name), known)
            study.problems += [f"{name}: shown as TeX, not as math: {tex}" for tex in pages[name].unconverted]
        except ValueError as error:
            study.problems.append(f"The page of {name} is missing: {error}")
    return pages


def _publish(built: Path, out: Path) -> None:
    """Move the finished files into place, the index last; remove pages and figures of an earlier report."""
    files = sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    files.sort(key=lambda path: path == Path("index.html"))
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(built / path, out / path)
    ours = f'name="generator" content="{GENERATOR}"'
    pages = [*out.glob("*.html"), *out.glob("run/*.html")]
    pages = [page for page in pages if ours in page.read_text(encoding="utf-8", errors="replace")[:2000]]
    for old in [*pages, *out.glob(f"{FOLDER}/*")]:
        if old.relative_to(out) not in files:
            old.unlink()
