"""The whole report on one page, and as a PDF: every page in the order of the navigation, with the bibliography."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup, Tag

from fragile_lib.tools.errors import require

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ENTRY = re.compile(r"@\w+\{[^,]+,(.*?)\n\}", re.S)
_FIELD = re.compile(r"(\w+) = \{(.*)\},?\s*$", re.M)
_ACCENTS = {r"{\'e}": "é", r"{\"o}": "ö"}


def references(path: Path) -> list[dict[str, str]]:
    """The entries of a BibTeX file, one field a line, by author and year; no file, no entries."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for tex, letter in _ACCENTS.items():
        text = text.replace(tex, letter)
    found = [{name: re.sub("[{}]", "", value) for name, value in _FIELD.findall(body)} for body in _ENTRY.findall(text)]
    for entry in found:
        entry["author"] = entry["author"].replace(" and ", ", ")
    return sorted(found, key=lambda entry: (entry["author"], entry["year"]))


def whole_page(out: Path) -> str:
    """One HTML page of all pages of the report in `out`; links between them lead to its own parts."""
    whole = BeautifulSoup((out / "index.html").read_text(encoding="utf-8"), "html.parser")
    names = [
        unquote(link["href"]).removesuffix(".html") for link in whole.header("a") if link["href"].endswith(".html")
    ]
    whole.body.clear()
    for name in names:
        page = BeautifulSoup((out / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        whole.body.append(_part(page.main, name, names))
    return str(whole)


def _part(main: Tag, name: str, names: list[str]) -> Tag:
    for tag in main(["script", "nav"]):
        tag.decompose()
    for tag in main(id=True):
        tag["id"] = f"{name}--{tag['id']}"
    for link in main("a", href=True):
        page, _, anchor = link["href"].partition("#")
        target = unquote(page).removesuffix(".html") or name
        if target in names:
            link["href"] = f"#{target}--{anchor or 'content'}"
        elif not page.startswith("https:"):
            link.unwrap()  # a file beside the report: of no use on paper
    main["id"], main.name = f"{name}--content", "section"
    main["style"] = "break-before: page"
    return main


def print_report(out: Path, target: Path) -> Path:
    """Write the report in `out` as the PDF `target` with a headless browser; raises InputError where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    require(browser is not None, "browser", None, f"none of {', '.join(BROWSERS)} is installed; install one")
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=out, encoding="utf-8") as page:
        page.write(whole_page(out))
        page.flush()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        command = [browser, *flags, f"--print-to-pdf={target.resolve()}", Path(page.name).as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    require(target.exists(), "browser", browser, f"wrote no PDF: {done.stderr[-300:]}")
    return target
