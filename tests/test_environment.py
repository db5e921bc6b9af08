"""The lock, the pins of conda's environment and the dependencies of the project name the same packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==(\S+) \\$", LOCK, re.M)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def test_the_lock_holds_every_dependency_in_a_version_that_will_do():
    for needed in NEEDED:
        version = LOCKED[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{needed} is locked at {version}"


def test_every_locked_package_has_a_hash_and_nothing_is_without_a_version():
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.M).strip())
    assert len(entries) == len(LOCKED) > len(NEEDED)
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_conda_s_pins_are_the_locked_versions_of_what_is_needed():
    (pip,) = [part["pip"] for part in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1:]]
    pins = dict(line.split("==") for line in pip if "==" in line)
    assert {canonicalize_name(name) for name in pins} == {canonicalize_name(needed.name) for needed in NEEDED}
    for name, version in pins.items():
        assert LOCKED[canonicalize_name(name)] == version, name
    assert [line for line in pip if "==" not in line] == ["-e .[test]"]
