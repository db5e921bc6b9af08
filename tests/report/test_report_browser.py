"""The report of a synthetic study, and the committed study of record, opened in a headless Chromium from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic

from fragile_lib.study.report import build_report
from fragile_lib.study.report.whole import print_report

pytestmark = pytest.mark.browser
RECORD = synthetic.REPOSITORY / "reports"
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"


LAYOUT = (Path(__file__).parent / "layout.js").read_text()
PAGES = ("index", "iris", "summary", "explore", "map", "runs", "reproducibility", f"run/{synthetic.WITH_NOTEBOOK}")
OF_RECORD = sorted(path.stem for path in RECORD.glob("*.html"))


@pytest.fixture(scope="session")
def of_record(tmp_path_factory) -> Path:
    """The report of the committed records, as today's templates render it."""
    return build_report(RECORD, tmp_path_factory.mktemp("record"), synthetic.REPOSITORY / "params").parent


@pytest.mark.parametrize(("which", "page"), [*(("synthetic", p) for p in PAGES), *(("record", p) for p in OF_RECORD)])
def test_every_page_at_every_width_in_light_and_dark_and_in_print(opened, axe, request, which, page):
    """No page is wider than its window, no texts of a figure overlap, each has caption, alternative text and runs."""
    out = request.getfixturevalue("report").out if which == "synthetic" else request.getfixturevalue("of_record")
    tab = opened(out / f"{page}.html", width=360)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == [] == tab.complaints
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    if which == "record":
        assert axe(tab) == []
    tab.evaluate(OPEN_ALL)
    for width in (360, 768, 1440):
        tab.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            facts = tab.evaluate(LAYOUT)
            assert facts["width"] == width and facts["overlapping"] == [] == facts["untold"] and not facts["outside"]
            assert facts["header"] and set(facts["turned"]) <= {scheme == "dark"}  # drawn on white, turned in the dark
            assert width < 1440 or facts["scrolling"] == []
            assert width < 1440 or facts["lines"] <= 3
            if which == "synthetic" and (width, scheme) in ((360, "dark"), (1440, "light")):
                assert axe(tab) == []
    tab.set_viewport_size({"width": 703, "height": 1000})
    tab.emulate_media(media="print", color_scheme="light")
    facts = tab.evaluate(LAYOUT)
    assert facts["width"] == 703 and facts["overlapping"] == [] == facts["scrolling"] and not facts["header"]
    assert facts["broken"] == []


def test_what_the_layout_says_can_fail(opened, report):
    tab = opened(report.out / "iris.html", width=768)
    said = tab.evaluate(LAYOUT)
    tab.add_style_tag(content="figcaption strong { position: absolute; }")
    tab.evaluate("document.querySelector('main p').style.minWidth = '60rem'")
    tab.evaluate("document.querySelector('figure img').removeAttribute('alt')")
    broken = tab.evaluate(LAYOUT)
    assert said["overlapping"] == [] == said["untold"] and broken["overlapping"] and broken["untold"]
    assert (said["width"], broken["width"] > 768) == (768, True)


def test_reasons_stand_open_in_print(opened, report):
    tab = opened(report.out / "index.html")
    reason = tab.locator("#claim-I3 .how li").first
    assert not reason.is_visible()
    tab.emulate_media(media="print")
    assert reason.bounding_box()["height"] > 5


def test_keyboard_and_pointer_open_what_is_folded(opened, report):
    tab = opened(report.out / "index.html")
    summary, reason = tab.locator("#claim-I3 .how summary"), tab.locator("#claim-I3 .how li").first
    summary.focus()
    tab.keyboard.press("Enter")
    assert reason.is_visible()
    summary.click()
    assert not reason.is_visible()
    link = tab.locator("#claim-I3 a").first
    link.hover()
    assert link.evaluate("a => getComputedStyle(a).textDecorationThickness") == "2px"


def test_readable_without_scripts(opened, report):
    said = {"index": ("not run", "partly reproduced", "falls, as claimed"), "runs": ("missing", "failed")}
    said["reproducibility"] = ("How to rerun", "Deviations from the paper", "0123abc")
    for name, words in said.items():
        tab = opened(report.out / f"{name}.html", java_script_enabled=False)
        text = tab.inner_text("main")
        assert all(word in text for word in words)
        if name == "runs":
            assert tab.locator("table.results tbody tr").count() > 5
            assert tab.locator("thead button").count() == 0


def test_printed_lines_are_not_cut(opened, report):
    tab = opened(report.out / "iris.html", width=1440)
    printed = tab.locator("pre.printed").first
    assert len(printed.inner_text()) > 200 and printed.evaluate("p => p.scrollWidth <= p.clientWidth")


def test_sorting(opened, report):
    tab = opened(report.out / "runs.html")
    table = tab.locator("table.results")
    head = table.locator("th", has_text="paper’s protocol").first
    cells = table.locator(f"tbody td:nth-child({head.evaluate('th => th.cellIndex') + 1})")

    def values():
        return [float(x) for x in cells.evaluate_all("c => c.map(x => x.dataset.sort)")]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)


def test_skip_link_and_math_are_there_for_the_keyboard_and_the_eye(opened, report):
    tab = opened(report.out / "iris.html")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.locator("math").first.bounding_box()["width"] > 20


def test_the_whole_report_is_printed(chromium, report, tmp_path):
    pdf = print_report(report.out, tmp_path / "study.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    assert not list(report.out.glob("tmp*.html"))


def test_the_scatter_tells_of_each_removal_by_pointer_and_keyboard(opened, report):
    tab = opened(report.out / "explore.html")
    marks, told, image = (tab.locator(s) for s in (".explore-plot circle", ".explore-told", ".explore-image"))
    assert marks.count() == 4 and image.count() == 1 and "test example, label 7" in told.inner_text()
    assert "4 removals: Spearman 1.00, Pearson 1.00" in tab.inner_text(".explore-numbers")
    marks.nth(3).hover()
    assert told.inner_text().strip() == "Training example 13, label 2: estimated +0.1, true +0.1 ± 0.04."
    assert image.evaluate("i => i.style.backgroundPosition").startswith("100%")
    marks.nth(0).focus()
    tab.keyboard.press("Tab")
    assert told.inner_text().strip() == "Training example 5: estimated −0.1, true −0.1 ± 0.02." and image.count() == 0
    tab.select_option("select[name=estimate]", "identity")
    assert marks.count() == 3 and "3 removals" in tab.inner_text(".explore-numbers")
    assert "Both axes run from −0.12 to +0.3" in tab.inner_text(".explore-numbers")
    before = marks.nth(0).get_attribute("cx")
    tab.check("input[name=spread]")
    assert marks.nth(0).get_attribute("cx") != before and not tab.complaints


def test_the_switch_of_damping_has_those_of_the_estimator(opened, report):
    tab = opened(report.out / "explore.html")
    damping, told = tab.locator("select[name=damping]"), tab.locator(".explore-told")
    assert damping.locator("option").all_inner_texts() == ["as in its run", "0.1", "0.001"] and damping.is_enabled()
    assert tab.locator("select[name=estimate] option").all_inner_texts() == ["Influence with the Hessian", "identity"]
    damping.select_option("0.1")
    assert "3 removals" in tab.inner_text(".explore-numbers") and "Hessian, damping 0.1." in told.inner_text()
    tab.select_option("select[name=estimate]", "identity")
    assert damping.is_disabled() and "identity." in told.inner_text() and "damping" not in told.inner_text()
    assert not tab.complaints


def test_every_mark_of_the_study_of_record_has_its_image(opened, of_record):
    tab = opened(of_record / "explore.html")
    marks, seen = tab.locator(".explore-plot circle"), 0
    for name in tab.locator("select[name=set] option").evaluate_all("all => all.map((o) => o.value)"):
        tab.select_option("select[name=set]", name)
        for mark in marks.all():
            mark.focus()
            assert tab.locator(".explore-image").count() == 1 and ", label " in tab.inner_text(".explore-told")
            seen += 1
    assert seen > 100


def test_the_scatter_stands_without_a_script(opened, report):
    tab = opened(report.out / "explore.html", java_script_enabled=False)
    assert tab.locator(".explore-plot circle").count() == tab.locator(".explore-plot .bar").count() == 4
    assert not tab.locator("form").is_visible()
    assert "Across: Influence with the Hessian. Upwards: warm, control subtracted" in tab.inner_text(".explore-told")


SHOWN = "[...document.querySelectorAll('.frame')].map((f) => f.offsetHeight > 0)"


def test_the_slider_shows_a_damping_at_a_time_and_all_of_them_without_a_script_and_in_print(opened, report):
    tab = opened(report.out / "explore.html")
    slider, told = tab.locator(".slider input"), tab.locator(".slider output")
    assert tab.evaluate(SHOWN) == [True, False] and told.inner_text() == "0.001"
    label = tab.locator(".frame svg").first.get_attribute("aria-label")
    assert label.startswith("Damping 0.001, warm, control subtracted") and label.endswith("Spearman 1.00, slope 1.00")
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(SHOWN) == [False, True] and told.inner_text() == slider.get_attribute("aria-valuetext") == "0.1"
    assert "3 removals, Spearman 0.50, slope 7.50" in tab.locator(".frame svg").nth(2).get_attribute("aria-label")
    box = slider.bounding_box()
    tab.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    assert tab.evaluate(SHOWN) == [True, False] and not tab.complaints
    tab.emulate_media(media="print")
    assert tab.evaluate(SHOWN) == [True, True] and not slider.is_visible()
    still = opened(report.out / "explore.html", java_script_enabled=False)
    assert still.evaluate(SHOWN) == [True, True] and not still.locator(".slider").is_visible()
    drawn = still.locator(".frame .marks").evaluate_all(
        "marks => marks.map((m) => m.getAttribute('d').split('M').length)"
    )
    assert drawn == [5, 5, 4, 4]


def test_the_first_page_of_record_prints_on_eight_sheets(opened, of_record):
    sheets = opened(of_record / "index.html").pdf(format="A4").count(b"/Type /Page\n")
    assert 2 < sheets <= 8
