"""The sentences on what was found beyond the claims take their numbers from the results, or are left out."""

from types import SimpleNamespace

import pandas as pd
import pytest

from fragile_lib.study.report.tables import finding_sentences

RESULTS = pd.DataFrame({"seed": [0, 1, 2, 0], "depth": [1, 1, 1, 8], "spearman": [0.9, 0.8, 0.7, 0.1]})


def finding(depth: int, statistic: str = "spearman") -> dict:
    return {"say": "At depth 1 it is {0}.", "values": [{"statistic": statistic, "where": {"depth": depth}}]}


def test_a_finding_states_mean_and_interval() -> None:
    said = finding_sentences(SimpleNamespace(results=RESULTS, settings={"findings": [finding(1)]}))
    assert said == ["At depth 1 it is 0.80 [0.70, 0.90]."]


@pytest.mark.parametrize(("depth", "statistic"), [(8, "spearman"), (3, "spearman"), (1, "colour")])
def test_without_its_numbers_a_finding_is_left_out(depth: int, statistic: str) -> None:
    settings = {"findings": [finding(1), finding(depth, statistic)]}
    assert len(finding_sentences(SimpleNamespace(results=RESULTS, settings=settings))) == 1


def test_no_findings_no_sentences() -> None:
    assert finding_sentences(SimpleNamespace(results=RESULTS, settings={})) == []
