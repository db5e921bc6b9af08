"""A record's file: what makes it a good one, its digest, and its rows in a quarter of the space.

Every command reads a record by `read_record`, which says in one line what is wrong with a file; a committed record is
packed (`files.stored`), one under runs/ is plain JSON, and both are read by the same call. Records of schema 2
carry a digest of their own content. Those of schema 1 were written before and are read without one: they are checked
for their form alone.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fragile_lib.study.files import PACKED, content_of, stored
from fragile_lib.tools.errors import bad_input
from fragile_lib.tools.files import json_digest, json_text, load_json, write_whole

SCHEMA, WITHOUT_DIGEST = 2, 1
LETTERS = string.digits + string.ascii_letters
KEY = (
    "seed", "test_point", "test_choice", "train_choice", "selected_by", "fit", "estimator", "damping", "ground_truth",
)  # fmt: skip
STATISTICS = ("pearson", "spearman", "slope")
TEXT, NUMBER, OBJECT, LIST = (str,), (int, float), (dict,), (list,)
REQUIRED = {
    **dict.fromkeys(("run_id", "profile", "notebook", "status", "fingerprint", "device", "started", "finished"), TEXT),
    **dict.fromkeys(("run", "parameters", "rows", "versions", "git", "seconds_by_part"), OBJECT),
    **dict.fromkeys(("certificates", "points", "seeds"), LIST),
    **dict.fromkeys(("threads", "seconds", "peak_memory_mb"), NUMBER),
}
KINDS = {
    **REQUIRED,
    **dict.fromkeys(("machine", "digest"), TEXT),
    **dict.fromkeys(("seconds_total", "orchestration_seconds"), NUMBER),
}


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record with its digest, whole or not at all; raise OSError on a full disk."""
    write_whole(path, json_text({**content, "schema": SCHEMA, "digest": _digest(content)}))


def read_record(path: Path, run_id: str = "") -> dict[str, Any]:
    """Return the record that belongs at `path`, plain or packed, its rows as `columns` and `data`.

    `run_id` is the one it must be of, its folder's by default.

    Raises InputError that says in one line what is wrong with the file: missing, cut short, no JSON, of another run,
    changed since it was written, with rows that do not fit their columns, are no numbers or stand there twice.
    """
    path = stored(path)
    try:
        content = load_json(_Packed(path) if path.suffix == PACKED else path)
        _check_form(content, run_id or path.parent.name)
        content["rows"] = _unpacked(content["rows"])
        _check_rows(**content["rows"])
        right = _digest(content)  # of the older ones too, as it refuses numbers that are infinite
        right = None if content["schema"] == WITHOUT_DIGEST else right
        _need(content.get("digest") == right, "was changed after it was written")
    except FileNotFoundError:
        raise bad_input("record", str(path), "is not there; run the study") from None
    except (OSError, ValueError, RecursionError) as error:
        said = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise bad_input("record", str(path), f"{said}; delete it and run the study again") from None
    return content


class _Packed(type(Path())):
    """A packed file that reads as a plain one, so that both are refused for the same reasons."""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return content_of(self).decode(encoding or "utf-8", errors or "strict")


def _need(right: object, fault: str) -> None:
    if not right:
        raise ValueError(fault)


def _digest(content: Mapping[str, Any]) -> str:
    """Return the digest of all that a record says; how its rows are stored does not matter."""
    return json_digest({key: value for key, value in content.items() if key not in ("schema", "digest")})


def _check_form(content: Any, run_id: str) -> None:
    right = isinstance(content, dict) and content.get("schema") in (WITHOUT_DIGEST, SCHEMA)
    _need(right, f"is no record of schema {SCHEMA}")
    for key, kinds in KINDS.items():
        _need(key in content or key not in REQUIRED, f"has no {key}")
        _need(key not in content or type(content[key]) in kinds, f"{key} is of another type than a record has")
    _need(content["run_id"] == run_id, f"is of the run {content['run_id'][:100]!r}")
    entries = [*content.get("points", []), *content.get("certificates", [])]
    _need(all(isinstance(entry, dict) for entry in entries), "its points or certificates are not what a record has")
    plain = not any(isinstance(value, dict | list) for value in content["run"].values())
    _need(plain, "its run holds lists")


def _check_rows(columns: list[str], data: list[list[Any]]) -> None:
    for name, column in zip(columns, zip(*data, strict=True), strict=False):
        kinds = {float if kind is int else kind for kind in map(type, column)} - {type(None)}
        _need(len(kinds) <= 1 and not kinds & {list, dict}, f"its column {name} is not of one kind")
        _need(name not in STATISTICS or kinds <= {float}, f"its column {name} holds what is no number")
    places = [columns.index(name) for name in KEY if name in columns]
    keys = {tuple(row[place] for place in places) for row in data}
    _need(not places or len(keys) == len(data), f"rows stand there twice: {len(data)} rows, {len(keys)} different")


def packed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its rows in a quarter of the space: by column, and each value of a column once.

    In place of `rows.data` stands `rows.packed`, which holds for each column its numbers, or `{values, rows}`: the
    distinct values, and a letter for each row, "0" for the first value (`LETTERS`). `read_record` takes both forms.
    """
    columns = list(zip(*content["rows"]["data"], strict=True))
    return {**content, "rows": {"columns": content["rows"]["columns"], "packed": [_pack(column) for column in columns]}}


def _pack(column: Iterable[Any]) -> list[Any] | dict[str, Any]:
    texts = [json.dumps(value) for value in column]  # 1, 1.0 and true are equal, but not the same
    distinct = list(dict.fromkeys(texts))
    if len(distinct) > min(len(LETTERS), len(texts) / 2):
        return [json.loads(text) for text in texts]
    letters = dict(zip(distinct, LETTERS, strict=False))
    return {"values": [json.loads(text) for text in distinct], "rows": "".join(letters[text] for text in texts)}


def _unpacked(rows: Mapping[str, Any]) -> dict[str, Any]:
    try:
        columns, data = rows["columns"], rows.get("data")
        if data is None:
            lists = [
                column if isinstance(column, list) else [column["values"][LETTERS.index(c)] for c in column["rows"]]
                for column in rows["packed"]
            ]
            data = [list(row) for row in zip(*lists, strict=True)]
        fit = all(isinstance(row, list) and len(row) == len(columns) for row in data)
        fit = fit and isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        fit = False
    _need(fit and len(set(columns)) == len(columns), "its rows do not fit their columns")
    return {"columns": columns, "data": data}


def row_dicts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a record's rows, each with the run's identity and the `run` block joined on."""
    shared = {"run_id": content["run_id"], "profile": content["profile"], **content["run"]}
    columns = content["rows"]["columns"]
    return [{**shared, **dict(zip(columns, values, strict=True))} for values in content["rows"]["data"]]
