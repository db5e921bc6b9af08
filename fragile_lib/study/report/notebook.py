"""One executed notebook as a readable fragment: prose, figures and tables in front, code folded away.

nbconvert's Markdown and pygments do the work; its page templates do not serve here, because they need scripts for math,
give figures no caption and tables no scope, and every cell would have to be rewritten after them.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import nbformat

from fragile_lib.study.report.markup import markdown, plain, python, tidy

HEADLINE = "headline"
CLAIM_TAG = "claim-"


@dataclass(frozen=True)
class Figure:
    """An image of a notebook: where it is, what it shows in words, and the image itself as a data address."""

    anchor: str
    source: str
    alt: str
    caption: str
    width: int | None = None
    height: int | None = None
    headline: bool = False


@dataclass
class Page:
    """A rendered notebook."""

    title: str
    body: str
    headings: list[tuple[int, str, str]]  # level, anchor, text
    anchors: set[str]
    figures: list[Figure] = field(default_factory=list)
    unconverted: list[str] = field(default_factory=list)  # formulas that could not be shown as math


def render_notebook(path: Path, local: Callable[[str], str | None]) -> Page:
    """Render the notebook at `path`; raises ValueError where the file is not a notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has several unrelated ones for a broken file
        raise ValueError(f"{path.name} is not a readable notebook: {error}") from error
    figures: list[Figure] = []
    body = "\n".join(_cell(cell, figures) for cell in notebook.cells)
    soup, headings = tidy(body, local)
    title = headings[0][2] if headings else path.stem
    if not headings:
        soup.insert(0, soup.new_tag("h1"))
        soup.h1.string = title
    unconverted = [tag.get_text() for tag in soup("code", class_="tex")]
    return Page(title, str(soup), headings, {tag["id"] for tag in soup(id=True)}, figures, unconverted)


def _cell(cell: nbformat.NotebookNode, figures: list[Figure]) -> str:
    tags = cell.metadata.get("tags", [])
    claims = [f'<span class="anchor" id="{escape(tag)}"></span>' for tag in tags if tag.startswith(CLAIM_TAG)]
    if cell.cell_type == "markdown":
        inner = markdown(cell.source, cell.get("attachments"))
        return f'<div class="cell prose">{"".join(claims)}{inner}</div>'
    if cell.cell_type != "code" or not (cell.source.strip() or cell.outputs):
        return ""
    outputs = "".join(_output(output, cell, figures, HEADLINE in tags) for output in cell.outputs)
    return f'<div class="cell">{"".join(claims)}{_code(cell.source, tags)}{outputs}</div>'


def _code(source: str, tags: list[str]) -> str:
    if "injected-parameters" in tags:
        summary = "Parameters of this run"
    elif "parameters" in tags:
        summary = "Parameters and their defaults"
    else:
        first = next((line.strip() for line in source.splitlines() if line.strip()), "")
        summary = f"Code: {first.lstrip('# ') if first.startswith('#') else first}"
    summary = summary if len(summary) <= 90 else summary[:88] + " …"
    return (
        f'<details class="code"><summary>{escape(summary)}</summary>'
        f'<pre class="highlight" tabindex="0"><code>{python(source)}</code></pre></details>'
    )


def _output(output: nbformat.NotebookNode, cell: nbformat.NotebookNode, figures: list[Figure], headline: bool) -> str:
    if output.output_type == "stream":
        text = plain(output.text).strip("\n")
        name = "messages" if output.name == "stderr" else "printed"
        return f'<pre class="{name}" tabindex="0">{text}</pre>' if text.strip() else ""
    if output.output_type == "error":
        text = plain("\n".join(output.traceback) or f"{output.ename}: {output.evalue}")
        return f'<pre class="error" tabindex="0">{text}</pre>'
    data, about = output.data, output.metadata
    for mime in ("image/png", "image/jpeg", "image/svg+xml"):
        if mime in data:
            figures.append(_figure(mime, data[mime], about.get(mime, about), len(figures) + 1, headline))
            return figure_html(figures[-1])
    if "text/html" in data:
        caption = about.get("text/html", {}).get("caption") or cell.metadata.get("caption")
        given = f' data-caption="{escape(caption)}"' if caption else ""
        return f'<div class="output"{given}>{data["text/html"]}</div>'
    for mime in ("text/markdown", "text/latex"):
        if mime in data:
            return f'<div class="output prose">{markdown(data[mime])}</div>'
    text = plain(data.get("text/plain", ""))
    return f'<pre class="printed" tabindex="0">{text}</pre>' if text.strip() else ""


def _figure(mime: str, data: str, about: dict, number: int, headline: bool) -> Figure:
    alt = about.get("alt") or f"Figure {number}; it has no description in words."
    if mime == "image/svg+xml":
        source = base64.b64encode(data.encode()).decode()
        width, height = about.get("width"), about.get("height")
    else:
        source = "".join(data.split())
        width, height = _png_size(source) if mime == "image/png" else (None, None)
    return Figure(
        f"figure-{number}", f"data:{mime};base64,{source}", alt, about.get("caption") or alt, width, height, headline
    )


def _png_size(encoded: str) -> tuple[int, int] | tuple[None, None]:
    """Width and height from the header, so that the page does not jump while the image is decoded."""
    head = base64.b64decode(encoded[:44])
    return struct.unpack(">II", head[16:24]) if head[:4] == b"\x89PNG" else (None, None)


def figure_html(figure: Figure, anchor: str = "") -> str:
    """A figure with its description for those who do not see it; `anchor` where its own is taken on the page."""
    size = f' width="{figure.width}" height="{figure.height}"' if figure.width and figure.height else ""
    return (
        f'<figure id="{escape(anchor or figure.anchor)}"><img src="{figure.source}" alt="{escape(figure.alt)}"{size}>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )
