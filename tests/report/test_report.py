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
from fragile_lib.study.claims import Part, judge_part
from fragile_lib.study.collect import collect
from fragile_lib.study.notebook_file import as_json, put_back, read_notebook, taken_out
from fragile_lib.study.report import build_report, tables
from fragile_lib.study.report.markup import ENVIRONMENT, mathml, tidy
from fragile_lib.study.report.notebook import Figure
from fragile_lib.study.report.peers import standings
from fragile_lib.study.report.source import read_methods
from fragile_lib.study.report.whole import references, whole_page
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import load_yaml
from fragile_lib.truths import TRUTHS


def pages(report) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in report.out.rglob("*.html")}


@pytest.fixture(scope="module")
def index(report) -> BeautifulSoup:
    return BeautifulSoup(report.index, "html.parser")


def page(report, name: str) -> str:
    return (report.out / f"{name}.html").read_text()


def soup_of(report, name: str) -> BeautifulSoup:
    return BeautifulSoup(page(report, name), "html.parser")


def row(report, run_id: str) -> str:
    soup = soup_of(report, "runs")
    return next(r for r in soup.select("table.runs tbody tr") if r.th.get_text(strip=True) == run_id).get_text(" ")


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_page_is_there_and_each_figure_once(report):
    names = {path.relative_to(report.out).as_posix() for path in report.out.rglob("*") if path.is_file()}
    files = {name for name in names if name.startswith("figures/")}
    lead, *others = (report.out / "figures").glob("lead.png")
    assert not others and lead.read_bytes() in {f.read_bytes() for f in lead.parent.glob("*-*.png")}
    files -= {"figures/lead.png"}
    figures = {name.removesuffix(".png") for name in files if name.endswith(".png")}
    assert {name.rpartition("-")[0] for name in figures} == {
        "figures/iris", "figures/summary", f"figures/{synthetic.WITH_NOTEBOOK}"
    } and len(figures) == 3  # fmt: skip
    assert files == {f"{name}{end}" for name in figures for end in (".png", ".csv.xz")}
    own = {f"{name}.html" for name in ("index", "iris", "summary", "explore", "map", "runs", "reproducibility")}
    assert names - files == own | {"figures/lead.png", f"run/{synthetic.WITH_NOTEBOOK}.html", "results.csv"}


def test_no_broken_link_or_anchor_and_nothing_from_outside(report):
    soups = pages(report)
    assert len(soups) == 8
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
        assert not [script for script in soup("script") if path.name not in ("runs.html", "explore.html")], path
        assert not re.search(r"@import|url\(", "".join(style.get_text() for style in soup("style")))
        assert "alert(1)</script>" not in path.read_text(), path
    assert "&lt;script&gt;alert(1)" in page(report, "runs"), "names from outside are escaped"


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
    told = {cell["data-label"]: cell.get_text(" ", strip=True) for cell in first.tr("td")}
    numbers = {"Here": "0.97", "Interval": "0.97 to 0.97", "n": "5", "Reliability": "–", "Direction": "near"}
    assert told["Paper"] == "0.97" and numbers.items() <= told.items()
    assert first.find("a")["href"] == "iris.html#claim-I1" and first.find("svg")
    assert first.th.get_text(" ", strip=True).endswith(" I1"), "a claim is named by what it says"
    assert "reproduced" in told["Verdict"] and "of 25 networks degenerate" not in first.get_text()
    assert "partly reproduced" in index.find(id="claim-I2").get_text()
    falls = index.find(id="claim-I3")
    assert "falls, as claimed" in falls.get_text() and "1 of 20 networks degenerate (1 constant)" in falls.get_text(" ")
    for name in ("S1", "T11", "N2"):
        assert "not run" in index.find(id=f"claim-{name}").get_text()
    counts, findings = (index.find(class_=name).get_text() for name in ("counts", "findings"))
    assert "Of the 26 claims" in counts and "could be judged: " in counts and "not run." in counts
    assert "2 constant" in findings
    assert "the points of largest |influence|, is 0.97; the paper gives 0.97" in findings
    lead = index.find(class_="lead").get_text()
    assert not re.search(r"\d", lead), "the first words are for those who know none of ours"


def test_a_few_numbers_have_no_interval_and_a_truth_its_reliability():
    results = pd.DataFrame({"seed": [0, 1, 2], "spearman": [0.91, 0.91, 0.92], "reliability": 0.8, "status": "ok"})
    results = results.assign(run_id=["a", "b", "c"], profile="laptop", depth=1)
    part = judge_part(results, Part("value", "x", "spearman", {"depth": 1}, paper=0.5))
    assert part.reliability == pytest.approx(0.8) and (part.direction, tables.interval_of(part)) == (
        "higher",
        "too few",
    )
    more = judge_part(
        pd.concat([results, results.assign(seed=[3, 4, 5])]), Part("value", "x", "spearman", {}, paper=0.9)
    )
    assert (tables.interval_of(more), more.direction) == ("0.91 to 0.92", "near")


def test_run_matrix_shows_failed_missing_broken_and_outcomes(report):
    words = {
        **{synthetic.MISSING: "missing", synthetic.FAILED: "RuntimeError", synthetic.LATER: "older result kept"},
        **{synthetic.BROKEN: "unreadable", "iris-relu-d8-w5-wd0.005": "descent: 1 of 5 seeds: constant"},
        synthetic.WITH_NOTEBOOK: "512 MB",
    }
    for run_id, said in words.items():
        assert said in row(report, run_id)
    assert f"run/{synthetic.WITH_NOTEBOOK}.html" in page(report, "runs")
    assert "../iris-relu-d1-w5-wd0/result.json" in page(report, "runs")


def test_reduced_profile_is_labelled_everywhere(report, study):
    for path, soup in pages(report).items():
        assert "not the study of record" in soup.find(class_="banner").get_text(), path
    for path in study.source.glob("*/result.json"):
        path.write_text(path.read_text().replace('"profile": "quick"', '"profile": "laptop"'))
    text = study.build()
    assert "not the study of record" not in text and "laptop profile" in text


def test_cells_on_a_card_are_told_beside_the_profile(study):
    """Where they are planned: how many have been run, and that the others are open."""
    assert "profile <code>gpu</code>" not in page(study, "runs")
    plan, cells = study.params / "iris.yaml", "\n  gpu:\n    grids: {card: {width: [50, 99], depth: [3]}}\npage:"
    plan.write_text(plan.read_text().replace("\npage:", cells))
    study.build()
    assert "(profile <code>gpu</code>): 0 of 2 have been run; the others are open." in page(study, "runs")
    record, card = (study.source / synthetic.WITH_NOTEBOOK / "result.json").read_text(), "iris-relu-d3-w50-wd0.005"
    (study.source / card).mkdir()
    record = record.replace('"quick"', '"gpu", "machine": "A Card"').replace(synthetic.WITH_NOTEBOOK, card)
    (study.source / card / "result.json").write_text(record)
    collect(sorted(study.source.glob("*/result.json")), study.source / "results.csv")
    assert "profiles are mixed" not in study.build()
    assert "1 of 2 have been run (A Card); the others are open." in page(study, "runs")


def test_a_figure_of_several_runs_links_to_each_of_them():
    shown = Figure("a.png", b"\x89PNG" + bytes(28), "figure-1", "alt", "Point.\nSetting.", runs=("a", "b", "gone"))
    text = ENVIRONMENT.get_template("macros.html.j2").module.figure(shown, "", {"a", "b"})
    links = [link["href"] for link in BeautifulSoup(text, "html.parser").details("a")]
    assert links == ["runs.html#run-a", "runs.html#run-b"]


def test_notebook_page(report):
    soup = BeautifulSoup((report.out / "iris.html").read_text(), "html.parser")
    assert soup.h1.get_text() == "Iris: can an influence function be believed?"
    assert len(soup("math")) == 2
    figure = soup.find(id="figure-1")
    assert figure.img["alt"].startswith("Spearman falls") and figure["class"] == ["plot"]
    caption = figure.figcaption
    assert (
        caption.strong.get_text() == "Agreement against depth."
        and caption.details.p.get_text() == "Means over 5 seeds."
    )
    links = {link.get_text(): link["href"] for link in caption("a")}
    assert links.pop("rows (CSV)") == figure.img["src"].replace(".png", ".csv.xz"), "its rows lie beside it"
    assert links == {synthetic.WITH_NOTEBOOK: f"runs.html#run-{synthetic.WITH_NOTEBOOK}"}, "runs that there are"
    assert soup.find(id="figure-2").figcaption.get_text(strip=True).startswith("Figure 2; it has no description")
    assert (figure.img["width"], figure.img["height"]) == ("640", "360")
    assert [c.get_text() for c in soup("caption")] == ["A level skipped", *["Means over seeds."] * 2]
    for summary in ("Parameters of this run", "Code: Train the networks"):
        assert soup.find("summary", string=summary)
    assert soup.find("a", href="summary.html") and soup.find("a", href="#fall-with-depth")
    assert not soup.find("a", string="the plan")  # not part of the report
    assert "example.org" not in str(soup) and "\x1b" not in str(soup)
    assert [a["href"] for a in soup.select(".contents a")][-1] == "#fall-with-depth-2"
    assert soup.find("pre", class_="error") and "100%" in soup.find("pre", class_="messages").get_text()


def test_headline_figures_summary_and_provenance(report, index):
    figures = index.select(".headline")
    assert len(figures) == 2 and figures[1].img["alt"].startswith("Spearman falls")
    assert index.main.find("h2").find_previous(class_="headline") == figures[0], "the first stands above all else"
    table = soup_of(report, "runs").find("table", class_="results")
    assert 5 < len(table.tbody("tr")) <= 200
    assert "0.34 [0.33, 0.34] n=4" in table.get_text()
    reproducible = soup_of(report, "reproducibility")
    text = reproducible.find(class_="provenance").get_text(" ")
    assert "0123abc" in text and "yes, in 2 of 11 runs" in text and "torch 2.0" in text and "2025-01-02" in text
    assert f"-f runs/quick/{synthetic.WITH_NOTEBOOK}/params.yaml" in reproducible.find(class_="commands").get_text()
    answered = [tag["id"] for tag in reproducible.select(".points dt")]
    assert {"scope", "sources", "obstacles", "sensitivity", "statistics", "compute", "rerunning"} == set(answered)


def test_a_page_of_a_demonstration_says_so_in_its_header(study):
    (study.source / "pages" / "small_mnist.ipynb").write_text((study.source / "pages" / "iris.ipynb").read_text())
    study.build()
    assert soup_of(study, "small_mnist").find(class_="demonstration").get_text().startswith("Demonstration.")
    assert soup_of(study, "iris").find(class_="demonstration") is None


def test_summary_has_numbers_where_a_setting_is_missing():
    table = pd.DataFrame({"dataset": ["iris", "cnn"] * 4, "depth": [1.0, np.nan] * 4, "seed": [0, 0, 1, 1] * 2})
    table["weight_decay"], table["spearman"] = [0.1] * 4 + [0.2] * 4, np.arange(8) / 10
    columns = [{"label": "Spearman", "statistic": "spearman"}]
    settings = {"summary": {"by": ["dataset", "depth", "weight_decay"], "columns": columns}}
    rows = tables.summary_table(SimpleNamespace(results=table, settings=settings))["rows"]
    assert {tuple(text for text, _ in row[:-1]) for row in rows} >= {("cnn", "", "0.1"), ("iris", "1", "0.2")}
    assert sorted(row[-1][1] for row in rows) == pytest.approx([0.1, 0.2, 0.5, 0.6])


def test_the_map_says_which_question_is_answered_where(report):
    soup = soup_of(report, "map")
    rows = [[cell.get_text(" ", strip=True) for cell in row("td")] for row in soup.select("table.methods tbody tr")]
    assert [row.code.get_text() for row in soup.select("table.methods tbody th")] == ["exact", "minimum", "pbrf"]
    assert rows[0][0] == "Where would it move?" and rows[0][1] == "Noise."
    assert "Parameters: damping. Applies to small networks." in rows[0][2]
    assert [row[3] for row in rows] == ["Iris", "Iris", "none"]
    assert len(soup.select("table.methods math")) == 2
    assert soup.select("table.methods code.tex")[0].get_text() == r"\unknownmacro"
    assert soup.find(id="damping") and soup.find(id="spearman-correlation")


def test_the_committed_methods_are_the_registries_and_tell_of_every_name_in_the_results():
    entries = read_methods(synthetic.REPOSITORY / "params" / "methods.yaml")
    results = pd.read_csv(synthetic.REPOSITORY / "reports" / "results.csv.xz", low_memory=False)
    for entry in entries:
        assert mathml(entry["formula"]).startswith("<math"), entry["name"]
        assert entry["asks"].endswith(("?", ".")) and entry["leaves_out"].endswith("."), entry["name"]
    estimators, truths = ({e["name"] for e in entries if e["kind"] == kind} for kind in ("estimator", "truth"))
    assert estimators == set(ESTIMATORS) and truths == set(TRUTHS)
    bare = {re.sub(r"_minus_control$|_[0-9.]+$", "", name) for name in results.ground_truth}
    assert bare <= truths and set(results.estimator) <= estimators | truths | {"random"}  # of removals


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("kind: truth", "kind: guess", "kind = 'guess'"),
        ("name: pbrf", "name: minimum", "occurs 2 times"),
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
    shutil.copytree(study.source, reports / "records", ignore=shutil.ignore_patterns("pages", "report", "*.csv"))
    (reports / "pages").mkdir()
    for path in (study.source / "pages").glob("*.ipynb"):
        page = taken_out(read_notebook(path, study.source), path.stem, reports)
        (reports / "pages" / path.name).write_text(as_json(page))
        assert '"image/png": "' in as_json(page) and "run_id,value" not in as_json(page)
        again = nbformat.reads(as_json(put_back(page, path.stem, reports)), as_version=4)
        further_down = path.read_text(encoding="utf-8").replace("](../", "](../../")
        assert again == nbformat.reads(further_down, as_version=4)
    assert "[the plan](../../README.md)" in (reports / "pages" / "iris.ipynb").read_text()
    shutil.copy(study.out / "results.csv", reports / "results.csv")
    before = (reports / "results.csv").stat().st_mtime_ns
    for source in (reports / "records", reports):
        text = build_report(source, reports, study.params).read_text()
        assert "iris.html#claim-I1" in text
        assert "records/iris-relu-d1-w5-wd0/result.json" in (reports / "runs.html").read_text()
        assert (reports / "iris.html").read_text() == (study.out / "iris.html").read_text()
    assert (reports / "results.csv").stat().st_mtime_ns == before
    assert "notebooks/iris.ipynb out.ipynb -f reports/records/" in (reports / "reproducibility.html").read_text()


def test_result_left_out_of_the_table_is_outdated(study):
    lines = (study.out / "results.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(f"{synthetic.WITH_NOTEBOOK},")]
    (study.source / "results.csv").write_text("\n".join(kept))
    study.build()
    assert "outdated" in row(study, synthetic.WITH_NOTEBOOK)


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
    assert names == {f"{name}.html" for name in ("index", "iris", "own", "explore", "map", "runs", "reproducibility")}
    assert len(list((study.out / "figures").iterdir())) == 3


def test_broken_page_and_empty_study_still_give_a_report(study, tmp_path):
    (study.source / "pages" / "iris.ipynb").write_text('{"cells": [')
    assert "not a readable notebook" in study.build()
    empty = tmp_path / "runs" / "laptop"
    empty.mkdir(parents=True)
    (study.params / "methods.yaml").unlink()
    text = build_report(empty, empty / "report", study.params).read_text()
    assert "None of the paper’s 26 claims" in text
    text = " ".join((empty / "report" / f"{name}.html").read_text() for name in ("runs", "map", "reproducibility"))
    for words in ("There are no results yet", "There is no finished run", "methods.yaml"):
        assert words in text


def test_bad_input_is_named(study, tmp_path):
    with pytest.raises(InputError, match="run the study first"):
        build_report(tmp_path / "nowhere", tmp_path / "out", study.params)
    assert not (tmp_path / "out").exists()
    (study.params / "deviations.yaml").write_text("deviations: [{what: split, paper: unknown, here: ours}]")
    with pytest.raises(InputError, match="why"):
        build_report(study.source, study.out, study.params)


def test_the_rows_beside_figures_and_the_figures_are_small():
    """What is drawn, and no more: a reader opens it in a spreadsheet, and git keeps every version."""
    figures = synthetic.REPOSITORY / "reports" / "figures"
    sizes = {path.name: path.stat().st_size for path in figures.iterdir()}
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}
    assert len(sizes) > 100


def test_all_pages_on_one_lead_to_one_another(report):
    whole = BeautifulSoup(whole_page(report.out), "html.parser")
    names = ("index", "summary", "iris", "explore", "map", "runs", "reproducibility")
    assert [part["id"] for part in whole.body("section", recursive=False)] == [f"{name}--content" for name in names]
    ids = [tag["id"] for tag in whole(id=True)]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in whole("a", href=True)]
    assert "#iris--claim-I1" in links and {link[1:] for link in links if link[0] == "#"} <= set(ids)
    assert all(link[0] == "#" or link.startswith("https:") for link in links) and not whole("script")


def test_the_bibliography_is_read_and_stands_on_its_page(study):
    entries = references(synthetic.REPOSITORY / "references.bib")
    text = (synthetic.REPOSITORY / "references.bib").read_text()
    assert len(entries) == text.count("\n@") + 1 and all({"author", "title", "year"} <= e.keys() for e in entries)
    assert not any(set("{}\\") & set("".join(e.values())) for e in entries) and "Laurent, César" not in str(entries)
    assert soup_of(study, "reproducibility").find(id="references") is None
    (study.params.parent / "references.bib").write_text(text)
    study.build()
    listed = soup_of(study, "reproducibility").select(".references li")
    assert len(listed) == len(entries) and "César Laurent" in str(listed)


def test_what_was_measured_beside_other_libraries_has_a_page_and_its_numbers(study):
    assert not (study.out / "peers.html").exists() and "peers.html" not in study.index
    mine = {"method": "cg", "library": "fragile_lib", "skipped": None, "seconds": 2.0, "memory_mb": 10.0, "error": 3e-9}
    rows = [
        {**mine, "spearman": 0.75, "from_ours": 0.0},
        {**mine, "library": "quick", "seconds": 0.5, "spearman": None, "from_ours": 1e-7},
        {
            **mine,
            "library": "fragile_lib, compiled",
            "seconds": 0.1,
            "spearman": None,
            "from_ours": 0.0,
            "test_examples": 2,
        },
        {"method": "exact", "library": "quick", "skipped": "too <large>"},
        {"method": "exact", "library": "fragile_lib", "skipped": "too <large>"},
    ]
    case = {
        "case": "toy",
        "title": "A toy",
        "n": 1234,
        "m": 5,
        "parameters": 6,
        "left_out": 7,
        "repeats": 3,
        "rows": rows,
    }
    trap = {"name": "a trap", "library": "quick", "what": "lies", "effect": "off by 9%"}
    convention = {"library": "quick", "score": "n times ours", "factor": "1 / n"}
    measured = {"cases": [case], "traps": [trap], "conventions": [convention], "versions": {"quick": "1.2"}}
    path = study.params.parent / "reports" / "peers.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(measured | {"date": "2026-01-02", "machine": "a machine"}))
    assert "peers.html" in study.build()
    text = " ".join(soup_of(study, "peers").get_text(" ").split())
    for words in (
        "faster in 0 and slower in 1",
        "1,234",
        "0.25 ×",
        "3e-09",
        "0.750",
        "too <large>",
        "this one, compiled",
        "from 2 of 5 test examples",
        "off by 9%",
        "1 / n",
    ):
        assert words in text
    assert soup_of(study, "peers").select("td strong")[0].get_text() == "0.25 ×"
    assert "reached in 0 of 1 works" in text and "A toy: 0.25 times as fast as quick, which is to say slower" in text


@pytest.mark.parametrize(
    ("ours", "theirs", "want"),
    [
        ({"seconds": 1.0, "memory_mb": 50.0}, {"seconds": 2.0, "memory_mb": 50.0}, True),
        ({"seconds": 1.0, "memory_mb": 51.0}, {"seconds": 2.0, "memory_mb": 50.0}, False),
        ({"seconds": 1.0, "memory_mb": 9.0}, {"seconds": 2.0, "memory_mb": 1.0}, True),  # too little to compare
        ({"seconds": 1.0, "memory_mb": 1.0}, {"seconds": 1.9, "memory_mb": 1.0}, False),
        ({"seconds": 1.0, "memory_mb": 1.0}, {"seconds": 0.1, "memory_mb": 1.0, "from_ours": 0.1}, None),
        ({"seconds": 1.0}, {"skipped": "given up"}, None),
    ],
)
def test_the_goal_beside_others_is_judged_against_the_fastest_with_the_same_numbers(ours, theirs, want):
    row = {"method": "cg", "skipped": None, "error": 0.0, "spearman": 0.5, "memory_mb": 1.0}
    slow = row | {"library": "slow", "seconds": 99.0, "from_ours": 1e-6}
    rows = [
        row | {"library": "fragile_lib", "from_ours": 0.0} | ours,
        row | {"library": "other", "from_ours": 1e-6} | theirs,
    ]
    found = standings([{"title": "A toy", "rows": rows}])
    assert [one["reached"] for one in found] == ([] if want is None else [want])
    (found,) = standings([{"title": "A toy", "rows": [*rows, slow]}])
    assert (found["library"] == "slow") == (want is None)


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
    study.build()
    assert "../iris_a.b-1/result.json" in page(study, "runs")


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


HOSTILE = '<p onclick="x()" style="a">a<script>x()</script><a href="javascript:x()">b</a><iframe src="x"></iframe>'
LINKS = '<p><a href="../reports/iris.html">Executed</a></p><p>See <a href="iris.html">it</a>, <a href="x">x</a>.</p>'


@pytest.mark.parametrize(
    ("html", "published"),
    [
        (HOSTILE, "<p>ab</p>"),
        (LINKS, "<p>See , x.</p>"),  # those of a notebook to its own page go
        ("<pre>a long line</pre>", '<pre tabindex="0">a long line</pre>'),  # the keyboard reaches it
    ],
)
def test_html_is_made_fit_to_publish(html, published):
    assert str(tidy(html, lambda href: "" if "iris" in href else None)[0]) == published


def test_a_long_table_scrolls_by_itself():
    for rows, classes in ((5, ["scroll"]), (40, ["scroll", "tall"])):
        soup, _ = tidy(f"<table>{'<tr><td>1</td></tr>' * rows}</table>", lambda href: None)
        assert soup.find(role="region")["class"] == classes


RESULTS = pd.DataFrame({"seed": [0, 1, 2, 0], "depth": [1, 1, 1, 8], "spearman": [0.9, 0.8, 0.7, 0.1]})


@pytest.mark.parametrize(("depth", "statistic"), [(8, "spearman"), (3, "spearman"), (1, "colour")])
def test_a_finding_states_mean_and_interval_and_is_left_out_without_its_numbers(depth, statistic):
    def finding(depth, statistic="spearman"):
        return {"say": "At depth 1 it is {0}.", "values": [{"statistic": statistic, "where": {"depth": depth}}]}

    study = SimpleNamespace(results=RESULTS, settings={"findings": [finding(1), finding(depth, statistic)]})
    assert tables.finding_sentences(study, "findings") == ["At depth 1 it is 0.80."]
    assert tables.finding_sentences(study, "findings", with_intervals=True) == ["At depth 1 it is 0.80 (3 numbers)."]
    study.results = pd.concat([RESULTS, RESULTS.assign(seed=RESULTS["seed"] + 3)])
    said = tables.finding_sentences(study, "findings", with_intervals=True)
    assert len(said) == 1 and re.fullmatch(r"At depth 1 it is 0\.80 \[0\.7\d, 0\.8\d\]\.", said[0])
    study.results = study.results.assign(spearman=0.8)
    assert "At depth 1 it is 0.80." in tables.finding_sentences(study, "findings", with_intervals=True)
    assert tables.finding_sentences(SimpleNamespace(results=RESULTS, settings={}), "findings") == []


def test_words_that_compare_stand_only_where_the_numbers_do():
    """As the committed records are, README's words are so too; rows that contradict change each sentence."""
    settings = load_yaml(synthetic.REPOSITORY / "params" / "report.yaml")
    results = pd.read_csv(synthetic.REPOSITORY / "reports" / "results.csv.xz", low_memory=False)
    level = results.assign(**dict.fromkeys(("spearman", "spearman_single", "reliability", "reliability_single"), 0.5))
    for which in ("opening", "findings", "numbers"):
        entries = settings[which]
        real, flat = (
            tables.finding_sentences(SimpleNamespace(results=rows, settings=settings), which)
            for rows in (results, level.assign(slope=0.5))
        )
        start = {
            kind: [entry.get(kind, entry["say"]).partition("{")[0] for entry in entries]
            for kind in ("say", "otherwise")
        }
        assert [said.startswith(words) for said, words in zip(real, start["say"], strict=True)] == [True] * len(entries)
        assert [said.startswith(words) for said, words in zip(flat, start["otherwise"], strict=True)] == [True] * len(
            entries
        )
        assert all(said != other for said, other, entry in zip(real, flat, entries, strict=True) if "when" in entry)
        assert all("when" in entry for entry in entries if entry.get("values"))
