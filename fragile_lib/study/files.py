"""Where things lie; JSON that is written whole; YAML that is refused where PyYAML would guess."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

import fragile_lib
from fragile_lib.tools.errors import InputError, bad_input
from fragile_lib.tools.files import write_whole


def study_root() -> Path:
    """Return the folder that holds params/, notebooks/ and runs/: the checkout, or the variable FRAGILE_ROOT."""
    given = os.environ.get("FRAGILE_ROOT")
    root = Path(given) if given else Path(fragile_lib.__file__).parents[1]
    if not (root / "params").is_dir():
        remedy = "has no params/ folder; install with `pip install -e .` or name the checkout"
        raise bad_input("FRAGILE_ROOT", str(root), remedy)
    return root.resolve()


def package_dir(root: Path) -> Path:
    """Return the folder of the science modules: the root's own, or this package's for a study of parameters alone."""
    own = root / "fragile_lib"
    return own if own.is_dir() else Path(fragile_lib.__file__).resolve().parent


def profile_dir(root: Path, profile: str) -> Path:
    """Return the folder of a profile's runs."""
    return root / "runs" / profile


def json_text(content: object) -> str:
    """Return `content` as a line of JSON; NaN is an error here: `record.plain` turns it into null before."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_whole(path, json_text(content))


def shown(path: Path, root: Path) -> str:
    """Return a path as messages show it: relative to the root where it lies under it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; plain PyYAML keeps the last and drops the first silently."""

    source = "YAML text"


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise bad_input("key", key, f"must be text; put it in quotes ({loader.source}, line {line})")
        if key in seen:
            raise bad_input(
                "key",
                key,
                f"is given twice, in lines {seen[key]} and {line} of {loader.source}; rename or remove one",
            )
        seen[key] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(path: Path, source: str | None = None) -> dict[str, Any]:
    """Return the mapping in a YAML file; `source` is the name that messages give the file.

    Raises InputError where the file cannot be read, is malformed or empty, is no mapping or gives a key twice.
    """
    source = source or path.name
    try:
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
        loader.source = source
        content = loader.get_single_data()
    except InputError:
        raise
    except FileNotFoundError:
        raise bad_input("file", source, "is not there; create it or correct the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input("file", source, f"cannot be read ({error}); write it as UTF-8 text") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise bad_input("file", source, f"is not well-formed YAML; correct it: {problem}") from None
    if content is None:
        raise bad_input("file", source, "is empty; fill it or delete it")
    if not isinstance(content, dict):
        raise bad_input("file", source, "must hold `name: value` pairs at its top level")
    return content


def dump_yaml(content: dict[str, Any]) -> str:
    """Return a mapping as YAML text with its order kept."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
