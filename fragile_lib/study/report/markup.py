"""HTML fragments of a notebook fit to publish: math without scripts, clean tables, ordered headings, safe links."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection
from html import escape

from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, PackageLoader, StrictUndefined
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from fragile_lib.study.execute import ANSI

ENVIRONMENT = Environment(
    loader=PackageLoader("fragile_lib.study.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_DROPPED = ("script", "style", "link", "meta", "base", "iframe", "object", "embed", "form", "noscript")
_HEADING = re.compile(r"h[1-6]$")
LONG = 30  # rows of a table from which on it scrolls by itself
_FORMATTER = HtmlFormatter(nowrap=True)
# What latex2mathml does not know, in terms of what it does.
_TEX = (
    (r"\\(begin|end)\{aligned\}", r"\\\1{split}"),
    (r"\\operatorname\*?\{arg\\[, ]?(min|max)\}|\\arg\s*\\(min|max)\b", r"\\arg\1\2 "),
    (r"\\arg(?![a-z])", r"\\operatorname{arg}"),
    (r"\\operatorname\*", r"\\operatorname"),
    (r"\\[bB]igg?[lrm]?\s*\\\|", r"\\Vert "),
    (r"\\\|", r"\\Vert "),
    (r"\\math(bb|bf|cal) (\w)", r"\\math\1{\2}"),
)


def mathml(tex: str, display: str = "inline") -> str:
    """TeX to MathML, which browsers show without a script; what the converter does not know stays readable as TeX."""
    for pattern, known in _TEX:
        tex = re.sub(pattern, known, tex)
    try:
        math = convert(tex, display=display)
    except Exception:  # the converter has no common exception class; a formula must never break a report
        math = ">\\"
    if ">\\" in math:  # an unknown macro, passed through as a name
        math = f'<code class="tex">{escape(tex)}</code>'
    # Bars of a norm grow with their whole row unless told not to; those of \\left and \\right are marked as stretching.
    math = re.sub(r"<mo>(&#x02016;|&#x0007C;|\|)</mo>", r'<mo stretchy="false">\1</mo>', math)
    return math if display == "inline" else f'<span class="math-block" tabindex="0">{math}</span>'


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown renderer with MathML in place of TeX for a script."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def markdown(source: str, attachments: dict | None = None) -> str:
    """Render a Markdown cell with its math and attached images."""
    renderer = _Renderer(escape=False, exclude_anchor_links=True, attachments=attachments)
    return MarkdownWithMath(renderer=renderer).render(source)


def bold(text: str) -> Markup:
    """Escape a text; what stands between two pairs of asterisks is bold."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)))


def python(source: str) -> str:
    """Highlight Python code; the colours are classes of the style sheet."""
    return highlight(source, PythonLexer(), _FORMATTER)


def plain(text: str) -> str:
    """Remove terminal colours and overwritten progress lines, then escape."""
    text = ANSI.sub("", text.replace("\r\n", "\n"))
    return escape("\n".join(line.rsplit("\r", 1)[-1] for line in text.split("\n")))


def slug(text: str) -> str:
    """Return an anchor for a heading: lower case, words joined by hyphens."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-") or "section"


def tidy(
    html: str, local: Callable[[str], str | None], images: Collection[str] = ()
) -> tuple[BeautifulSoup, list[tuple[int, str, str]]]:
    """Return the fragment as a soup fit to publish, and its headings (level, anchor, text) in order.

    `local` maps a relative link to where it leads in the report, None where it leads nowhere, or "" where it leads to
    the page itself and is to go. `images` are the
    files that the report has itself.
    """
    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(_DROPPED):
        tag.decompose()
    for tag in soup(True):
        for name in [name for name in tag.attrs if name.lower().startswith("on") or name == "style"]:
            del tag[name]
    headings = _order_headings(soup)
    for image in soup("img"):
        _offline(soup, image, images)
    for table in soup("table"):
        _accessible(soup, table)
    for code in soup("pre"):
        code["tabindex"] = "0"  # it scrolls by itself, so that the keyboard has to reach it
    _mend_links(soup, local)
    return soup, headings


def _order_headings(soup: BeautifulSoup) -> list[tuple[int, str, str]]:
    """One h1, no skipped level, a unique anchor for each heading."""
    headings: list[tuple[int, str, str]] = []
    taken = {"content", *(tag["id"] for tag in soup(id=True))}
    for tag in soup(_HEADING):
        level = int(tag.name[1])
        level = min(max(level, 2), headings[-1][0] + 1) if headings else 1
        text = tag.get_text(" ", strip=True)
        base = slug(tag.get_text())
        anchor = _unlike(taken, base, "{}-{}")
        taken.add(anchor)
        tag.name, tag["id"] = f"h{level}", anchor
        headings.append((level, anchor, text))
    return headings


def _unlike(taken: Collection[str], name: str, numbered: str) -> str:
    """The name, or with the first number from 2 on that makes it none of those taken."""
    return next(a for n in itertools.count(1) if (a := numbered.format(name, n) if n > 1 else name) not in taken)


def _offline(soup: BeautifulSoup, image: Tag, images: Collection[str]) -> None:
    """Keep the report's own images only: others would be a request, or a broken image, in the published page."""
    if not str(image.get("src", "")).startswith("data:") and image.get("src") not in images:
        note = soup.new_tag("em")
        note.string = f"[image not embedded: {image.get('alt') or image.get('src') or 'unnamed'}]"
        image.replace_with(note)
    elif not image.has_attr("alt"):
        image["alt"] = ""


def _accessible(soup: BeautifulSoup, table: Tag) -> None:
    """Header scopes, a caption, and a container that scrolls by itself on a narrow screen."""
    for name in ("border", "width", "align"):
        table.attrs.pop(name, None)
    for cell in table("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"
        elif cell.find_parent("thead"):
            cell["scope"] = "colgroup" if int(cell.get("colspan", 1)) > 1 else "col"
        else:
            cell["scope"] = "rowgroup" if int(cell.get("rowspan", 1)) > 1 else "row"
        for text in cell.find_all(string=lambda text: "_" in text):
            text.replace_with(text.replace("_", "_\u200b"))  # a long name may go on in the next line
    if table.caption is None:
        given = table.find_parent(attrs={"data-caption": True})
        section = table.find_previous(_HEADING)
        # A caption that only repeats the section serves those who jump from table to table; the eye does not need it.
        caption = soup.new_tag("caption", attrs={} if given else {"class": "hidden"})
        caption.string = given["data-caption"] if given else (section.get_text(" ", strip=True) if section else "Table")
        table.insert(0, caption)
    taken = [region["aria-label"] for region in soup(attrs={"role": "region", "aria-label": True})]
    label = _unlike(taken, table.caption.get_text(" ", strip=True), "{} ({})")  # regions are told apart by their names
    tall = " tall" if len(table("tr")) > LONG else ""  # scrolls by itself, so that the page goes on below it
    table.wrap(
        soup.new_tag("div", attrs={"class": f"scroll{tall}", "role": "region", "tabindex": "0", "aria-label": label})
    )


def _mend_links(soup: BeautifulSoup, local: Callable[[str], str | None]) -> None:
    anchors = {tag["id"] for tag in soup(id=True)}
    for link in soup("a", href=True):
        href = str(link["href"]).strip()
        if re.match(r"https?:|mailto:", href):
            continue
        if href.startswith("#"):
            target = next((name for name in (href[1:], slug(href[1:])) if name in anchors), None)
            target = target and f"#{target}"
        else:
            target = None if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", href) else local(href)
        if target == "":  # to this very page
            (link.parent if link.parent.get_text(strip=True) == link.get_text(strip=True) else link).decompose()
        elif target is None:
            link.unwrap()
        else:
            link["href"] = target
