"""The report opened in a headless Chromium, from disk."""

from __future__ import annotations

import pytest
import synthetic

pytestmark = pytest.mark.browser
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "iris.html"])
def test_accessible_at_any_width_and_asking_nobody(opened, axe, report, page, scheme):
    tab = opened(report.out / page, color_scheme=scheme)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == [] == tab.complaints
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    tab.evaluate(OPEN_ALL)
    assert axe(tab) == []
    tab.set_viewport_size({"width": 360, "height": 800})
    assert axe(tab) == []


@pytest.mark.parametrize("page", ["index.html", "iris.html", f"run/{synthetic.WITH_NOTEBOOK}.html"])
def test_phone_width_without_sideways_scrolling(opened, report, page):
    tab = opened(report.out / page, 360)
    tab.evaluate(OPEN_ALL)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360


def test_readable_without_scripts(opened, report):
    tab = opened(report.out / "index.html", java_script_enabled=False)
    text = tab.inner_text("main")
    for words in ("not run", "partly reproduced", "missing", "How to rerun", "Deviations from the paper", "0123abc"):
        assert words in text
    assert tab.locator("table.results tbody tr").count() > 5
    assert tab.locator("thead button").count() == 0


def test_sorting(opened, report):
    tab = opened(report.out / "index.html")
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
