from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import synthetic

from fragile_lib.study.report import build_report
from fragile_lib.study.report.whole import BROWSERS


@dataclass(frozen=True)
class Built:
    source: Path
    params: Path
    out: Path

    @property
    def index(self) -> str:
        return (self.out / "index.html").read_text()

    def build(self) -> str:
        """Build the report once more; return its index."""
        build_report(self.source, self.out, self.params)
        return self.index


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A report of the synthetic study; shared, so tests must not write into it."""
    source, params = synthetic.make_study(tmp_path_factory.mktemp("study"))
    index = build_report(source, source / "report", params)
    return Built(source, params, index.parent)


@pytest.fixture
def study(report: Built, tmp_path: Path) -> Built:
    """A copy of the synthetic study with its report, free to be broken."""
    root = report.source.parents[1]
    shutil.copytree(root, tmp_path / "copy")
    source = tmp_path / "copy" / report.source.relative_to(root)
    return Built(source, tmp_path / "copy" / "params", source / "report")


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A headless Chromium; tests that need it skip, with the reason, where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install -e .[study,test])"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium found on PATH; install Debian's package `chromium` to run the browser tests")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium) -> Iterator[Callable[..., object]]:
    """Return a call that opens a page from disk; what the page requests and complains of is kept."""
    contexts = []

    def call(path: Path, width: int = 1280, **options: object) -> object:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.requests, tab.complaints = [], []
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("console", lambda line: tab.complaints.append(line.text) if line.type == "error" else None)
        tab.goto(path.as_uri())
        return tab

    yield call
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe() -> Callable[[object], list]:
    """Return a call that lists what is not accessible on a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    only = {"resultTypes": ["violations"]}  # what passes is then not described at length
    found = lambda tab: axe.Axe().run(tab, options=only).response["violations"]  # noqa: E731
    return lambda tab: [(v["id"], v["nodes"][0]["html"][:200]) for v in found(tab)]
