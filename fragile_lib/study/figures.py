"""Figures of executed notebooks, each stored once: in a published study as a file, else inside the notebook."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fragile_lib.tools.files import write_if_changed

FOLDER = "figures"
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
_LINK = re.compile(rf'<img src="\.\./({FOLDER}/[^"]+)">')
AnyNotebook = TypeVar("AnyNotebook", bound=Mapping[str, Any])


def image_of(data: Mapping[str, Any], mime: str) -> bytes:
    """Return the content of an image output; text is stored as such, everything else in base 64."""
    text = data[mime] if isinstance(data[mime], str) else "".join(data[mime])
    return text.encode() if mime.endswith("xml") else base64.b64decode(text)


def figure_name(notebook: str, content: bytes, mime: str = "image/png") -> str:
    """Return the name of a figure's file, which changes with its content."""
    return f"{notebook}-{hashlib.sha256(content).hexdigest()[:8]}.{IMAGES[mime]}"


def taken_out(notebook: AnyNotebook, name: str, home: Path) -> AnyNotebook:
    """Return an executed notebook with links in place of its PNG images, which are written to `home`/figures."""
    notebook = copy.deepcopy(notebook)
    for data in _outputs(notebook):
        if "image/png" in data:
            content = image_of(data, "image/png")
            write_if_changed(home / FOLDER / figure_name(name, content), content)
            del data["image/png"]
            data["text/html"] = f'<img src="../{FOLDER}/{figure_name(name, content)}">'
    return notebook


def put_back(notebook: AnyNotebook, home: Path) -> AnyNotebook:
    """Return a notebook with its images inside again; OSError where a file is missing."""
    notebook = copy.deepcopy(notebook)
    for data in _outputs(notebook):
        link = _LINK.fullmatch("".join(data.get("text/html", "")))
        if link:
            del data["text/html"]
            data["image/png"] = base64.b64encode((home / link[1]).read_bytes()).decode()
    return notebook


def _outputs(notebook: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what each output of a notebook holds, by its kind."""
    for cell in notebook["cells"]:
        yield from (output["data"] for output in cell.get("outputs", []) if "data" in output)
