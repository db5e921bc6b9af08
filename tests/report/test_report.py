"""The report of a synthetic study: what it shows, what it never contains, and what becomes of broken input."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
import synthetic
from bs4 import BeautifulSoup

from fragile_lib.estimates import ESTIMATORS
from fragile_lib.study.notebook_file import as_json, put_back, read_notebook, taken_out
from fragile_lib.study.report import build_report, tables
from fragile_lib.study.report.markup import mathml, tidy
from fragile_lib.study.report.source import read_methods
from fragile_lib.tools.errors import InputError
from fragile_lib.truths import TRUTHS


def pages(report) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in report.out.rglob("*.html")}


@pytest.fixture(scope="module")
def index(report) -> BeautifulSoup:
    return BeautifulSoup(report.index, "html.parser")


def row(text: str, run_id: str) -> str:
    soup = BeautifulSoup(text, "html.parser")
    return next(r for r in soup.select("table.runs tbody tr") if r.th.get_text(strip=True) == run_id).get_text(" ")


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_page_is_there_and_each_figure_once(report):
    names = {path.relative_to(report.out).as_posix() for path in report.out.rglob("*") if path.is_file()}
    figures = {name for name in names if name.startswith("figures/")}
    assert {name.rpartition("-")[0] for name in figures} == {
        "figures/iris", "figures/summary", f"figures/{synthetic.WITH_NOTEBOOK}"
    } and len(figures) == 3  # fmt: skip
    run = f"run/{synthetic.WITH_NOTEBOOK}.html"
    assert names - figures == {"index.html", "iris.html", "summary.html", run, "results.csv"}


def test_no_broken_link_or_anchor_and_nothing_from_outside(report):
    soups = pages(report)
    assert len(soups) == 4
    for path, soup in soups.items():
        ids = [tag["id"] for tag in soup(id=True)]
        assert len(ids) == len(set(ids)), path
        for link in soup("a", href=True):
            href, _, anchor = link["href"].partition("#")
            if href.startswith("https://"):
                continue
            target = (path.parent / unquote(href)).resolve() if href else path
            assert target.exists(), f"{path.name}: {link['href']}"
            if anchor:
                assert soups[target].find(id=anchor), f"{path.name}: {link['href']}"
        assert not soup("link") and not soup("iframe"), path
        assert all((path.parent / unquote(tag["src"])).is_file() for tag in soup(src=True)), path
        assert not [script for script in soup("script") if path.name != "index.html"], path
        assert not re.search(r"@import|url\(", "".join(style.get_text() for style in soup("style")))
        assert "alert(1)</script>" not in path.read_text(), path
    assert "&lt;script&gt;alert(1)" in report.index, "names from outside are escaped"


def test_structure(report):
    for path, soup in pages(report).items():
        assert len(soup("h1")) == 1, path
        levels = [int(tag.name[1]) for tag in soup(re.compile("^h[1-6]$"))]
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False)), (path, levels)
        assert all(image.get("alt") for image in soup("img"))
        assert all(table.caption and table("th", scope=True) for table in soup("table"))
        regions = [region["aria-label"] for region in soup(role="region")]
        assert len(set(regions)) == len(regions), "each region has a name of its own"
        assert soup.main and soup.header and soup.footer and soup.find("a", class_="skip")


def test_verdicts_with_figures_intervals_and_evidence(index):
    first = index.find(id="claim-I1")
    assert "0.97" in first.get_text() and "[0.97, 0.97]" in first.get_text() and "5 seeds" in first.get_text()
    assert first.find("a")["href"] == "iris.html#claim-I1" and first.find("svg")
    assert "reproduced" in first.get_text() and "of 25 networks degenerate" not in first.get_text()
    assert "partly reproduced" in index.find(id="claim-I2").get_text()
    assert "1 of 20 networks degenerate (1 constant)" in index.find(id="claim-I3").get_text(" ")
    for name in ("S1", "T11", "N2"):
        assert "not run" in index.find(id=f"claim-{name}").get_text()
    counts, findings = (index.find(class_=name).get_text() for name in ("counts", "findings"))
    assert (
        "Of the 26 claims" in counts
        and "could be judged: " in counts
        and "not run." in counts
        and "2 constant" in findings
    )
    assert "the points of largest |influence|, is 0.97 [0.97, 0.97]; the paper gives 0.97" in findings
    assert not re.search(r"\d", index.find(class_="lead").get_text()), (
        "the first words are for those who know none of ours"
    )


def test_run_matrix_shows_failed_missing_broken_and_outcomes(report):
    words = {
        **{synthetic.MISSING: "missing", synthetic.FAILED: "RuntimeError", synthetic.LATER: "older result kept"},
        **{synthetic.BROKEN: "unreadable", "iris-relu-d8-w5-wd0.005": "descent: 1 of 5 seeds: constant"},
        synthetic.WITH_NOTEBOOK: "512 MB",
    }
    for run_id, said in words.items():
        assert said in row(report.index, run_id)
    assert f"run/{synthetic.WITH_NOTEBOOK}.html" in report.index
    assert "../iris-relu-d1-w5-wd0/result.json" in report.index


def test_reduced_profile_is_labelled_everywhere(report, study):
    for path, soup in pages(report).items():
        assert "not the study of record" in soup.find(class_="banner").get_text(), path
    for path in study.source.glob("*/result.json"):
        path.write_text(path.read_text().replace('"profile": "quick"', '"profile": "laptop"'))
    text = study.build()
    assert "not the study of record" not in text and "Laptop profile" in text


def test_cells_on_a_card_are_told_beside_the_profile(study):
    """Where they are planned: how many have been run, and that the others are open."""
    assert "profile <code>gpu</code>" not in study.index
    plan, cells = study.params / "iris.yaml", "\n  gpu:\n    grids: {card: {width: [50, 99], depth: [3]}}\npage:"
    plan.write_text(plan.read_text().replace("\npage:", cells))
    assert "(profile <code>gpu</code>): 0 of 2 have been run; the others are open." in study.build()
    record, card = (study.source / synthetic.WITH_NOTEBOOK / "result.json").read_text(), "iris-relu-d3-w50-wd0.005"
    (study.source / card).mkdir()
    record = record.replace('"quick"', '"gpu", "machine": "A Card"').replace(synthetic.WITH_NOTEBOOK, card)
    (study.source / card / "result.json").write_text(record)
    told = study.build()
    assert "1 of 2 have been run (A Card); the others are open." in told and "profiles are mixed" not in told


def test_notebook_page(report):
    soup = BeautifulSoup((report.out / "iris.html").read_text(), "html.parser")
    assert soup.h1.get_text() == "Iris: can an influence function be believed?"
    assert len(soup("math")) == 2
    figure = soup.find(id="figure-1")
    assert figure.img["alt"].startswith("Spearman falls") and figure.figcaption.get_text() == "Agreement against depth."
    assert (figure.img["width"], figure.img["height"]) == ("640", "360")
    assert [c.get_text() for c in soup("caption")] == ["A level skipped", *["Means over seeds."] * 2]
    for summary in ("Parameters of this run", "Code: Train the networks"):
        assert soup.find("summary", string=summary)
    assert soup.find("a", href="summary.html") and soup.find("a", href="#fall-with-depth")
    assert not soup.find("a", string="the plan")  # not part of the report
    assert "example.org" not in str(soup) and "\x1b" not in str(soup)
    assert [a["href"] for a in soup.select(".contents a")][-1] == "#fall-with-depth-2"
    assert soup.find("pre", class_="error") and "100%" in soup.find("pre", class_="messages").get_text()


def test_headline_figures_summary_and_provenance(index):
    figures = index.select(".headline")
    assert len(figures) == 2 and figures[1].img["alt"].startswith("Spearman falls")
    assert {"iris.html#figure-1", "results.csv"} <= {a["href"] for a in figures[1]("a")}
    table = index.find("table", class_="results")
    assert 5 < len(table.tbody("tr")) <= 200
    assert "0.34 [0.33, 0.34] n=4" in table.get_text()
    text = index.find(class_="provenance").get_text(" ")
    assert "0123abc" in text and "yes, in 2 of 11 runs" in text and "torch 2.0" in text and "2025-01-02" in text
    assert f"-f runs/quick/{synthetic.WITH_NOTEBOOK}/params.yaml" in index.find(class_="commands").get_text()


def test_summary_has_numbers_where_a_setting_is_missing():
    table = pd.DataFrame({"dataset": ["iris", "cnn"] * 4, "depth": [1.0, np.nan] * 4, "seed": [0, 0, 1, 1] * 2})
    table["weight_decay"], table["spearman"] = [0.1] * 4 + [0.2] * 4, np.arange(8) / 10
    columns = [{"label": "Spearman", "statistic": "spearman"}]
    settings = {"summary": {"by": ["dataset", "depth", "weight_decay"], "columns": columns}}
    rows = tables.summary_table(SimpleNamespace(results=table, settings=settings))["rows"]
    assert {tuple(text for text, _ in row[:-1]) for row in rows} >= {("cnn", "", "0.1"), ("iris", "1", "0.2")}
    assert sorted(row[-1][1] for row in rows) == pytest.approx([0.1, 0.2, 0.5, 0.6])


def test_methods_say_which_question_is_answered_where(index):
    rows = [[cell.get_text(" ", strip=True) for cell in row("td")] for row in index.select("table.methods tbody tr")]
    assert [row.th.get_text() for row in index.select("table.methods tbody tr")] == ["exact", "minimum", "pbrf"]
    assert [row[0] for row in rows] == ["Influence with the Hessian", "The minimum without them", "Proximal response"]
    assert [(row[2], row[3]) for row in rows][:2] == [("damping", "small networks"), ("tolerance", "everywhere")]
    assert [row[4] for row in rows] == ["iris", "iris", "none"]
    assert len(index.select("table.methods math")) == 2
    assert index.select("table.methods code.tex")[0].get_text() == r"\unknownmacro"


def test_the_committed_methods_are_the_registries_and_tell_of_every_name_in_the_results():
    entries = read_methods(synthetic.REPOSITORY / "params" / "methods.yaml")
    results = pd.read_csv(synthetic.REPOSITORY / "reports" / "results.csv", low_memory=False)
    for entry in entries:
        assert mathml(entry["formula"]).startswith("<math"), entry["name"]
    estimators, truths = ({e["name"] for e in entries if e["kind"] == kind} for kind in ("estimator", "truth"))
    assert estimators == set(ESTIMATORS) and truths == set(TRUTHS)
    bare = {re.sub(r"_minus_control$|_[0-9.]+$", "", name) for name in results.ground_truth}
    assert bare <= truths and set(results.estimator) <= estimators | truths


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("kind: truth", "kind: guess", "kind = 'guess'"),
        ("name: pbrf", "name: minimum", "twice"),
        ("title", "t", "title"),
    ],
)
def test_malformed_methods_are_named(tmp_path, old, new, named):
    path = tmp_path / "methods.yaml"
    path.write_text(synthetic.METHODS.replace(old, new))
    with pytest.raises(InputError, match=named):
        read_methods(path)


def test_layout_of_the_study_of_record(study):
    """reports/records, reports/pages, reports/results.csv; the table is not copied onto itself."""
    reports = study.params.parent / "reports"
    shutil.copytree(study.source, reports / "records", ignore=shutil.ignore_patterns("pages", "report"))
    (reports / "pages").mkdir()
    for path in (study.source / "pages").glob("*.ipynb"):
        page = taken_out(read_notebook(path, study.source), path.stem, reports)
        (reports / "pages" / path.name).write_text(as_json(page))
        assert '"image/png": "' not in as_json(page)
        again = nbformat.reads(as_json(put_back(page, reports)), as_version=4)
        assert again == nbformat.read(path, as_version=4)
    shutil.copy(study.out / "results.csv", reports / "results.csv")
    before = (reports / "results.csv").stat().st_mtime_ns
    for source in (reports / "records", reports):
        text = build_report(source, reports, study.params).read_text()
        assert "iris.html#claim-I1" in text and "records/iris-relu-d1-w5-wd0/result.json" in text
        assert (reports / "iris.html").read_text() == (study.out / "iris.html").read_text()
    assert (reports / "results.csv").stat().st_mtime_ns == before
    assert "notebooks/iris.ipynb out.ipynb -f reports/records/" in text


def test_result_left_out_of_the_table_is_outdated(study):
    lines = (study.out / "results.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{synthetic.WITH_NOTEBOOK},")]
    (study.source / "results.csv").write_text("\n".join(kept))
    assert "outdated" in row(study.build(), synthetic.WITH_NOTEBOOK)


@pytest.mark.parametrize(
    ("broken", "error"),
    [("fragile_lib.study.report.tables.summary_table", ZeroDivisionError), ("pathlib.Path.write_text", OSError)],
)
def test_failed_build_and_full_disk_leave_the_old_report(study, monkeypatch, broken, error):
    def fail(*_, **__):
        raise error(28, "No space left on device")

    before = snapshot(study.out)
    monkeypatch.setattr(broken, fail)
    with pytest.raises(error):
        build_report(study.source, study.out, study.params)
    assert snapshot(study.out) == before and not list(study.source.glob(".report-*"))


def test_pages_that_are_gone_are_removed_and_foreign_files_stay(study):
    (study.out / "own.html").write_text("<p>not from the report")
    (study.source / synthetic.WITH_NOTEBOOK / "run.ipynb").unlink()
    (study.source / "pages" / "summary.ipynb").unlink()
    study.build()
    names = {path.relative_to(study.out).as_posix() for path in study.out.rglob("*.html")}
    assert names == {"index.html", "iris.html", "own.html"}
    assert len(list((study.out / "figures").iterdir())) == 1


def test_broken_page_and_empty_study_still_give_a_report(study, tmp_path):
    (study.source / "pages" / "iris.ipynb").write_text('{"cells": [')
    assert "not a readable notebook" in study.build()
    empty = tmp_path / "runs" / "laptop"
    empty.mkdir(parents=True)
    (study.params / "methods.yaml").unlink()
    text = build_report(empty, empty / "report", study.params).read_text()
    for words in (
        "None of the paper’s 26 claims",
        "There are no results yet",
        "There is no finished run",
        "methods.yaml",
    ):
        assert words in text


def test_bad_input_is_named(study, tmp_path):
    with pytest.raises(InputError, match="run the study first"):
        build_report(tmp_path / "nowhere", tmp_path / "out", study.params)
    assert not (tmp_path / "out").exists()
    (study.params / "deviations.yaml").write_text("deviations: [{what: split, paper: unknown, here: ours}]")
    with pytest.raises(InputError, match="why"):
        build_report(study.source, study.out, study.params)


def test_same_input_gives_the_same_report_within_seconds(study):
    before, start = snapshot(study.out), time.perf_counter()
    study.build()
    assert time.perf_counter() - start < 20  # about one second on an idle core
    assert snapshot(study.out) == before


def test_run_id_with_odd_but_legal_characters(study):
    record = json.loads((study.source / "iris-relu-d1-w5-wd0" / "result.json").read_text())
    folder = study.source / "iris_a.b-1"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({**record, "run_id": folder.name}))
    assert "../iris_a.b-1/result.json" in study.build()


@pytest.mark.parametrize(
    "tex",
    [
        r"\arg\min_\theta J(\theta)", r"\operatorname*{arg\,min}_\theta J", r"\operatorname{tr} A",
        r"\left\| x \right\|",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}", r"\mathbb E[x]", r"\bigl\| x \bigr\|", r"x < y",
        r"-\nabla f(\theta^\star)^\top (H + \delta I)^{-1} \nabla \ell(z_i, \theta^\star)",
    ],
)  # fmt: skip
def test_math_becomes_mathml(tex):
    math = mathml(tex)
    assert math.startswith("<math") and "\\" not in math and "<mo />" not in math


@pytest.mark.parametrize("tex", [r"\unknownmacro x", r"\frac{1", r"\left( x"])
def test_math_that_cannot_be_converted_stays_readable(tex):
    math = mathml(tex)
    assert math.startswith(("<math", "<code")) and "<script" not in math


def test_hostile_html_is_stripped():
    html = '<p onclick="x()" style="a">a<script>x()</script><a href="javascript:x()">b</a><iframe src="x"></iframe>'
    soup, _ = tidy(html, lambda href: None)
    assert str(soup) == "<p>ab</p>"


RESULTS = pd.DataFrame({"seed": [0, 1, 2, 0], "depth": [1, 1, 1, 8], "spearman": [0.9, 0.8, 0.7, 0.1]})


@pytest.mark.parametrize(("depth", "statistic"), [(8, "spearman"), (3, "spearman"), (1, "colour")])
def test_a_finding_states_mean_and_interval_and_is_left_out_without_its_numbers(depth, statistic):
    def finding(depth, statistic="spearman"):
        return {"say": "At depth 1 it is {0}.", "values": [{"statistic": statistic, "where": {"depth": depth}}]}

    settings = {"findings": [finding(1), finding(depth, statistic)]}
    said = tables.finding_sentences(SimpleNamespace(results=RESULTS, settings=settings))
    assert said == ["At depth 1 it is 0.80 [0.70, 0.90]."]
    assert tables.finding_sentences(SimpleNamespace(results=RESULTS, settings={})) == []
