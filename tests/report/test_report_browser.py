"""The report of a synthetic study, and the committed study of record, opened in a headless Chromium from disk."""

from __future__ import annotations

import pytest
import synthetic

from fragile_lib.study.report.whole import print_report

pytestmark = pytest.mark.browser
RECORD = synthetic.REPOSITORY / "reports"
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "iris.html", "explore.html", "map.html", "runs.html"])
def test_accessible_at_any_width_and_asking_nobody(opened, axe, report, page, scheme):
    tab = opened(report.out / page, color_scheme=scheme)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == [] == tab.complaints
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    tab.evaluate(OPEN_ALL)
    assert axe(tab) == []
    tab.set_viewport_size({"width": 360, "height": 800})
    assert axe(tab) == []


PAGES = [f"{name}.html" for name in ("index", "iris", "summary", "explore", "map", "runs", "reproducibility")]
PAGES += [f"run/{synthetic.WITH_NOTEBOOK}.html"]
FIGURES = """() => [...document.querySelectorAll('figure')].map((f) => ({
  alt: f.querySelector('img').alt, caption: f.querySelector('figcaption').innerText.trim(),
  outside: f.getBoundingClientRect().right > document.documentElement.clientWidth + 1,
  links: [...f.querySelectorAll('figcaption a')].map((a) => a.getAttribute('href')),
}))"""
WIDE = """() => [...document.querySelectorAll('.claims, .methods, .deviations, .runs, .results')]
  .filter((t) => t.parentElement.scrollWidth > t.parentElement.clientWidth).map((t) => t.className)"""


@pytest.mark.parametrize("page", PAGES)
def test_layout_at_every_width_in_light_and_dark_and_in_print(opened, report, page):
    """No page is wider than its window, no table of prose scrolls sideways, every figure has its words and rows."""
    tab = opened(report.out / page)
    tab.evaluate(OPEN_ALL)
    for width in (360, 768, 1440):
        tab.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            assert width < 1440 or tab.evaluate(WIDE) == []
            figures = tab.evaluate(FIGURES)
            assert all(f["alt"] and f["caption"] and not f["outside"] for f in figures)
            drawn = [f for f in figures if f["caption"].startswith("Agreement against depth")]
            assert all(any("runs.html#run-" in a for a in f["links"]) for f in drawn)
            assert all(any(a.endswith(".csv") for a in f["links"]) for f in drawn)
            if figures:  # drawn on white, which a dark page turns over
                turned = tab.evaluate("getComputedStyle(document.querySelector('figure img')).filter") != "none"
                assert turned == (scheme == "dark")
    tab.set_viewport_size({"width": 703, "height": 1000})
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") == 703
    assert not tab.locator("header.top").is_visible()


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
    before = marks.nth(0).get_attribute("cx")
    tab.check("input[name=spread]")
    assert marks.nth(0).get_attribute("cx") != before and not tab.complaints


def test_the_scatter_stands_without_a_script(opened, report):
    tab = opened(report.out / "explore.html", java_script_enabled=False)
    assert tab.locator(".explore-plot circle").count() == 4 and not tab.locator("form").is_visible()
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


@pytest.mark.parametrize("page", sorted(path.name for path in RECORD.glob("*.html")))
def test_the_study_of_record_reads_on_a_phone_and_asks_nobody(opened, axe, page):
    tab = opened(RECORD / page, width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    tab.set_viewport_size({"width": 1280, "height": 900})
    assert axe(tab) == []


def test_the_first_page_of_record_prints_on_eight_sheets(opened):
    sheets = opened(RECORD / "index.html").pdf(format="A4").count(b"/Type /Page\n")
    assert 2 < sheets <= 8
