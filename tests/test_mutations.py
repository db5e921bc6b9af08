"""A sample of the mutations: each breaks the test that it names. `python tests/mutations.py` runs all of them."""

import pytest
from mutations import MUTATIONS, ROOT, Mutation, caught

SAMPLE = ("influence has the wrong sign", "correlations are not corrected by a root")


def test_every_mutation_finds_its_text_and_its_test_and_is_named_once() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 30
    for mutation in MUTATIONS:
        assert mutation.old in (ROOT / "fragile_lib" / mutation.file).read_text(), mutation.name
        file, _, test = mutation.test.partition("::")
        assert f"def {test}" in (ROOT / file).read_text(), mutation.name


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [m for m in MUTATIONS if m.name in SAMPLE], ids=lambda m: m.name)
def test_it_is_caught(mutation: Mutation) -> None:
    assert caught(mutation)
