"""Fixtures of a toy study."""

import pytest
from toy import Toy, example_record


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    found = Toy(tmp_path / "study")
    monkeypatch.setenv("FRAGILE_ROOT", str(found.root))
    return found


@pytest.fixture(name="example_record")
def example_record_fixture():
    return example_record
