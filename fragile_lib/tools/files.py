"""Files that are written whole or not at all, JSON, strict YAML, locks, and the folder of raw data."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

import yaml

from fragile_lib.tools.errors import InputError, bad_input, require


def write_whole(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old content of `path` or the new, never a part.

    `content` is text, bytes, or a function that fills the open file. The folder is made. What fails leaves nothing
    behind; OSError is passed on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            if callable(content):
                content(handle)
            else:
                handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_if_changed(path: Path, content: str | bytes) -> bool:
    """Write a file whole unless it holds this already, so that its time stamp moves only with its content."""
    content = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == content:
        return False
    write_whole(path, content)
    return True


@contextmanager
def locked(path: Path, name: str, value: str, remedy: str) -> Iterator[None]:
    """Hold a lock for this process; the system lets go of it however the process ends.

    Raises:
        InputError: another process holds it: `name = value: remedy`, with the holder in place of {}.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise bad_input(name, value, remedy.format(_holder(file))) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        file.truncate(0)


def _holder(file: TextIO) -> str:
    """Return what the holder of a lock wrote into its file, which it does a moment after it has the lock."""
    for _ in range(20):
        file.seek(0)
        if found := file.read().strip():
            return found
        time.sleep(0.05)
    return "another process"


def json_text(content: object) -> str:
    """Return `content` as a line of JSON; NaN is an error here: `plain` turns it into null before."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"


def json_digest(content: object) -> str:
    """Return the SHA-256 of JSON-able content, whatever the order of its keys; ValueError for NaN and infinity."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_text(path: Path) -> str:
    """Return what a text file holds; OSError for a fifo or device too, whose end would be waited for."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "Is a fifo, a socket or a device", str(path))
    return path.read_text(encoding="utf-8")


def load_json(path: Path) -> Any:
    """Return what a JSON file holds; OSError where it cannot be opened, ValueError in one line where it is none."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} stands in it, which is no JSON")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None


def remove(path: Path) -> None:
    """Remove what is at `path`, a file, a link or a whole folder, if anything is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plain(value: Any, digits: int | None = None) -> Any:
    """Return `value` in JSON's own types: numpy, torch, paths, tuples, a table by its rows; NaN and infinity as None.

    With `digits`, floats are rounded to that many significant digits.
    """
    if value is None or isinstance(value, str | bool):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return {str(key): plain(element, digits) for key, element in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [plain(element, digits) for element in value]
    if hasattr(value, "to_dict"):  # a table
        return plain(value.to_dict("records"), digits)
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars alike
        return plain(value.tolist(), digits)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{digits}g}") if digits else float(value)
    if isinstance(value, Path):
        return value.as_posix()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    raise bad_input("value", value, f"of type {type(value).__name__} cannot stand in a record; give numbers or text")


def data_root() -> Path:
    """Where raw data sets live: FRAGILE_DATA of the environment, else a cache folder of the user."""
    chosen = os.environ.get("FRAGILE_DATA")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path  # which a machine that is told where they are can do without

    return user_cache_path("fragile", appauthor=False)


MOST_MERGED = 1000  # pairs in one YAML file that come by merging


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what plain PyYAML reads as something else, silently: a key given twice, 010 as 8.

    An alias costs nothing, however often it stands. A merge (`<<: *a`) copies, and merges of merges copy much.
    """

    source, merged = "YAML text", 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the pairs that a mapping merges before its own, as PyYAML does, but not any number of them."""
        before, place = len(node.value), f"({self.source}, line {node.start_mark.line + 1})"
        merges = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        widest = max((len(value.value) for value in merges), default=0)
        require(widest <= MOST_MERGED, "<<", widest, f"merges too much; write the pairs out {place}")
        super().flatten_mapping(node)
        self.merged += len(node.value) - before
        require(self.merged <= MOST_MERGED, "<<", self.merged, f"merges too many pairs; write them out {place}")


def _number(loader: _StrictLoader, node: yaml.ScalarNode) -> int | float:
    text, place = node.value, f"({loader.source}, line {node.start_mark.line + 1})"
    odd = re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", text)  # octal, and sexagesimal: 1:30 is 90
    require(not odd, "number", text, f"is read as another number than it looks like; write it as a decimal {place}")
    require(len(text) <= 400, "number", text, f"has {len(text)} digits; write fewer {place}")
    if node.tag.endswith(":int"):
        return loader.construct_yaml_int(node)
    return loader.construct_yaml_float(node)


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: dict[str, int] = {}
    for key_node in (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        right = isinstance(key, str) and key.isprintable()
        require(right, "key", key, f"must be text of one line; put it in quotes ({loader.source}, line {line})")
        if key in seen:
            lines = f"in lines {seen[key]} and {line} of {loader.source}"
            raise bad_input("key", key, f"is given twice, {lines}; rename or remove one")
        seen[key] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _number)


def load_yaml(path: Path, source: str | None = None) -> dict[str, Any]:
    """Return the mapping in a YAML file; `source` is the name that messages give the file.

    Raises InputError where the file cannot be read, is malformed or empty, is no mapping or gives a key twice.
    """
    source = source or path.name
    try:
        loader = _StrictLoader(read_text(path))
        loader.source = source
        content = loader.get_single_data()
    except InputError:
        raise
    except FileNotFoundError:
        raise bad_input("file", source, "is not there; create it or correct the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input("file", source, f"cannot be read ({error}); write it as UTF-8 text") from None
    except RecursionError:
        raise bad_input("file", source, "is nested too deeply; write it with fewer brackets") from None
    except (yaml.YAMLError, ValueError, AttributeError, LookupError) as error:  # PyYAML lets others through, of !!bool
        problem = " ".join(str(error).split())[:500]
        raise bad_input("file", source, f"is not well-formed YAML; correct it: {problem}") from None
    if content is None:
        raise bad_input("file", source, "is empty; fill it or delete it")
    if not isinstance(content, dict):
        raise bad_input("file", source, "must hold `name: value` pairs at its top level")
    return content


def dump_yaml(content: dict[str, Any]) -> str:
    """Return a mapping as YAML text with its order kept."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
