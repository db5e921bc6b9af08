"""One executed notebook as a readable fragment: prose, figures and tables in front, code folded away.

nbconvert's Markdown and pygments do the work; its page templates do not serve here, because they need scripts for math,
give figures no caption and tables no scope, and every cell would have to be rewritten after them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup

from fragile_lib.study.files import PACKED
from fragile_lib.study.notebook_file import PNG, image_of, put_back
from fragile_lib.study.report.markup import ENVIRONMENT, markdown, plain, python, tidy

HEADLINE = "headline"
CLAIM_TAG = "claim-"


@dataclass(frozen=True)
class Figure:
    """An image of a notebook: its file and its content, where it stands, and what is told of it.

    A caption's first line is its point, the second its setting, the others are details. `runs` and `rows` (as CSV) are
    what the image is drawn from; without runs it is of the notebook's own.
    """

    name: str
    content: bytes
    anchor: str
    alt: str
    caption: str
    headline: bool = False
    photographs: bool = False
    runs: tuple[str, ...] = ()
    rows: str = ""

    @property
    def lines(self) -> list[str]:
        """Point, setting and details; a caption of one line is a setting."""
        found = self.caption.split("\n", 2)
        return ["", *found, ""][:3] if len(found) == 1 else [*found, ""][:3]

    @property
    def table(self) -> str:
        """The name of the packed file with its rows."""
        return f"{Path(self.name).stem}.csv{PACKED}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height from a PNG's header, so that the page does not jump while the image is loaded."""
        return struct.unpack(">II", self.content[16:24])


@dataclass
class Page:
    """A rendered notebook."""

    title: str
    body: str
    headings: list[tuple[int, str, str]]  # level, anchor, text
    anchors: set[str]
    figures: list[Figure] = field(default_factory=list)
    unconverted: list[str] = field(default_factory=list)  # formulas that could not be shown as math


def render_notebook(
    path: Path, name: str, root: str, local: Callable[[str], str | None], known: Collection[str] = ()
) -> Page:
    """Render the notebook at `path` as page `name`; raises ValueError where the file is not a notebook.

    `root` leads from the page to the report's folder; `local` is as in `markup.tidy`; `known` are the runs that the
    report tells of.
    """
    try:
        notebook = put_back(nbformat.read(path, as_version=4), name, path.parent.parent)
    except Exception as error:  # nbformat has several unrelated ones for a broken file
        raise ValueError(f"{path.name} is not a readable notebook: {error}") from error
    figures: list[Figure] = []
    cells = [_cell(cell, name, figures) for cell in notebook.cells]
    body = ENVIRONMENT.get_template("cells.html.j2").render(
        cells=[cell for cell in cells if cell], root=root, known=known
    )
    soup, headings = tidy(body, local, {f"{root}figures/{figure.name}" for figure in figures})
    title = headings[0][2] if headings else path.stem
    if not headings:
        soup.insert(0, soup.new_tag("h1"))
        soup.h1.string = title
    unconverted = [tag.get_text() for tag in soup("code", class_="tex")]
    return Page(title, str(soup), headings, {tag["id"] for tag in soup(id=True)}, figures, unconverted)


def _cell(cell: nbformat.NotebookNode, name: str, figures: list[Figure]) -> dict[str, Any] | None:
    """Return what `cells.html.j2` shows of a cell, or None; its figures are added to `figures`."""
    tags = cell.metadata.get("tags", [])
    claims = [tag for tag in tags if tag.startswith(CLAIM_TAG)]
    if cell.cell_type == "markdown":
        return {"claims": claims, "prose": Markup(markdown(cell.source, cell.get("attachments")))}
    if cell.cell_type != "code" or not (cell.source.strip() or cell.outputs):
        return None
    first = (cell.source.strip().splitlines() or [""])[0].strip()
    summary = f"Code: {first.lstrip('# ') if first.startswith('#') else first}"
    summary = summary if len(summary) <= 90 else summary[:88] + " …"
    named = {"injected-parameters": "Parameters of this run", "parameters": "Parameters and their defaults"}
    summary = next((named[tag] for tag in tags if tag in named), summary)
    outputs = [found for output in cell.outputs if (found := _output(output, cell, name, figures))]
    shown = {"claims": claims, "summary": summary, "code": Markup(python(cell.source)), "outputs": outputs}
    return shown | {"parameters": summary in named.values()}


def _output(
    output: nbformat.NotebookNode, cell: nbformat.NotebookNode, name: str, figures: list[Figure]
) -> tuple[str, Any, str] | None:
    """Return the kind of an output, its content, and the caption of a table."""
    if output.output_type == "stream":
        text = plain(output.text).strip("\n")
        return ("messages" if output.name == "stderr" else "printed", Markup(text), "") if text.strip() else None
    if output.output_type == "error":
        return "error", Markup(plain("\n".join(output.traceback) or f"{output.ename}: {output.evalue}")), ""
    data, about = output.data, output.metadata
    if PNG in data:
        about, number = about.get(PNG, about), len(figures) + 1
        alt = about.get("alt") or f"Figure {number}; it has no description in words."
        told = {name: about[name] for name in ("photographs", "rows") if name in about}
        told |= {"headline": HEADLINE in cell.metadata.get("tags", []), "runs": tuple(about.get("runs", ()))}
        place = *image_of(data, name), f"figure-{number}", alt, about.get("caption") or alt
        figures.append(Figure(*place, **told))
        return "figure", figures[-1], ""
    if "text/html" in data:
        caption = about.get("text/html", {}).get("caption") or cell.metadata.get("caption")
        return "table", Markup(data["text/html"]), caption or ""
    for mime in ("text/markdown", "text/latex"):
        if mime in data:
            return "prose", Markup(markdown(data[mime])), ""
    text = plain(data.get("text/plain", ""))
    return ("printed", Markup(text), "") if text.strip() else None
