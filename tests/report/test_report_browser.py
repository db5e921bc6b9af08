"""The report opened in a headless Chromium, from disk."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser
PAGES = ("index.html", "iris.html")
WIDTHS = (1280, 360)


def opened(chromium, report, page: str, width: int = 1280, scheme: str = "light", **options):
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
    tab = context.new_page()
    tab.requests = []
    tab.complaints = []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("console", lambda line: tab.complaints.append(line.text) if line.type == "error" else None)
    tab.goto((report.out / page).as_uri())
    return tab


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_accessible(chromium, report, page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab = opened(chromium, report, page, width, scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = axe.Axe().run(tab).response["violations"]
    assert not found, [(v["id"], v["nodes"][0]["html"][:200]) for v in found]
    tab.context.close()


@pytest.mark.parametrize("page", [*PAGES, "run/iris-relu-d1-w5-wd0.005.html"])
def test_phone_width_without_sideways_scrolling(chromium, report, page):
    tab = opened(chromium, report, page, 360)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.context.close()


def test_only_local_files_are_requested(chromium, report):
    for page in PAGES:
        tab = opened(chromium, report, page)
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        assert tab.complaints == []
        tab.context.close()


def test_readable_without_scripts(chromium, report):
    tab = opened(chromium, report, "index.html", java_script_enabled=False)
    text = tab.inner_text("main")
    for words in ("not run", "partly reproduced", "missing", "How to rerun", "Deviations from the paper", "0123abc"):
        assert words in text
    assert tab.locator("table.results tbody tr").count() > 5
    assert tab.locator("thead button").count() == 0
    tab.context.close()


def test_sorting(chromium, report):
    tab = opened(chromium, report, "index.html")
    table = tab.locator("table.results")
    head = table.locator("th", has_text="paper’s protocol").first
    column = head.evaluate("th => th.cellIndex") + 1

    def values():
        return [
            float(x)
            for x in table.locator(f"tbody td:nth-child({column})").evaluate_all("c => c.map(x => x.dataset.sort)")
        ]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    tab.context.close()


def test_skip_link_and_math_are_there_for_the_keyboard_and_the_eye(chromium, report):
    tab = opened(chromium, report, "iris.html")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    assert tab.locator("math").first.bounding_box()["width"] > 20
    tab.context.close()
