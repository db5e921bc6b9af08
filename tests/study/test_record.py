"""The record and the table: what is written, what is read back, what is refused."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fragile_lib.study.collect import COLUMNS, collect, results_csv
from fragile_lib.study.record import LETTERS, packed, read_record, record, row_dicts
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import plain
from fragile_lib.tools.machine import git_state

ROWS = pd.DataFrame({
    "seed": [0, 0, 1, 1], "test_choice": ["max_loss"] * 4, "estimator": ["exact", "lissa"] * 2,
    "test_point": [3.0, 4.0, np.nan, 5.0], "spearman": [0.123456789, np.nan, 0.5, np.inf],
})  # fmt: skip


def write(folder, **changes):
    given = {
        **{"output_dir": folder, "run_id": "r", "profile": "quick", "notebook": "toy", "rows": ROWS},
        **{"run": {"dataset": "toy", "depth": np.int64(3)}, "parameters": {"depth": 3, "output_dir": str(folder)}},
    }
    return record(**{**given, **changes})


def test_record_is_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAGILE_FINGERPRINT", "abc")
    certificates = pd.DataFrame({"seed": [0], "grad_norm": [np.float32(1e-7)], "eig_min": [np.nan]})
    points = [{"index": np.arange(2), "estimate": {"exact": np.array([1 / 3, np.nan])}}]
    table = write(tmp_path, certificates=certificates, points=points, seeds=range(2), seconds_by_part={"a": 1.23456789})
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text and "Infinity" not in text and str(tmp_path) not in text
    content = read_record(tmp_path / "result.json")
    assert content["rows"]["data"][0] == [0, "max_loss", "exact", 3, 0.1235]
    assert content["rows"]["data"][2][3] is None and content["rows"]["data"][3][4] is None
    assert content["certificates"] == [{"seed": 0, "grad_norm": 1e-07, "eig_min": None}]
    assert content["points"] == [{"index": [0, 1], "estimate": {"exact": [0.3333, None]}}]
    assert content["parameters"] == {"depth": 3} and content["run"]["depth"] == 3
    assert content["fingerprint"] == "abc" and content["seeds"] == [0, 1] and content["status"] == "ok"
    assert content["peak_memory_mb"] > 10 and content["versions"]["python"] and content["finished"].endswith("Z")
    assert list(table.columns) == ["test_choice", "estimator", "spearman", "n"] and list(table["n"]) == [2, 2]
    rows = row_dicts(content)
    assert list(rows[0])[:4] == ["run_id", "profile", "dataset", "depth"] and len(rows) == 4
    assert {row["depth"] for row in rows} == {3} and rows[1]["spearman"] is None


def test_without_a_folder_or_with_a_value_that_is_no_number_or_text_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(write("")) == 2
    with pytest.raises(InputError, match="of type object cannot stand in a record"):
        write(tmp_path, run={"dataset": object()})
    assert list(tmp_path.iterdir()) == []


def test_plain():
    assert plain((np.int64(1), np.bool_(True), Path("a/b"), pd.NA, float("inf"))) == [1, True, "a/b", None, None]
    assert plain(123456.789, digits=6) == 123457.0 and plain(123456.789) == 123456.789
    assert type(plain(np.float64(0.1))) is float and type(plain(np.str_("x"))) is str


def test_packed_rows_are_read_back_as_they_were(tmp_path, example_record):
    columns = {"few": [1, 1.0, True, None] * 20, "text": ["ok"] * 80, "numbers": [i / 7 for i in range(80)]}
    columns["many"] = [i % (len(LETTERS) + 1) for i in range(80)]
    rows = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
    content = example_record(rows=rows)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(packed(content)))
    assert json.dumps(read_record(path)) == json.dumps(content)  # 1, 1.0 and true are told apart
    assert path.stat().st_size < 0.8 * len(json.dumps(content))
    empty = example_record(rows={"columns": ["seed"], "data": []})
    path.write_text(json.dumps(packed(empty)))
    assert row_dicts(read_record(path)) == []


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema": 1', "[]", '{"schema": 2}', "null", b"\xff\xfe".decode("latin-1")]
)
def test_a_broken_record_is_refused(tmp_path, text):
    (tmp_path / "result.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="result.json.*run the study again"):
        read_record(tmp_path / "result.json")


ODD = [{"columns": ["a"], "data": [[1, 2]]}, {}, {"columns": ["a"], "packed": [{"values": [1], "rows": "01"}]}]
ODD += [{"columns": ["a", "b"], "packed": [[1], [2, 3]]}, {"columns": ["a"], "data": 3}]


@pytest.mark.parametrize("changes", [*({"rows": rows} for rows in ODD), {"run": None}, {"run_id": 3}])
def test_a_record_that_does_not_fit_is_refused(tmp_path, example_record, changes):
    (tmp_path / "result.json").write_text(json.dumps(example_record(**changes)))
    with pytest.raises(InputError, match="record = "):
        read_record(tmp_path / "result.json")


def test_git_state(tmp_path):
    assert git_state(tmp_path, ["fragile_lib"]) == {"commit": "", "dirty": False}

    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "fragile_lib").mkdir()
    (tmp_path / "fragile_lib" / "a.py").write_text("a")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "notes.txt").write_text("does not decide numbers")
    state = git_state(tmp_path, ["fragile_lib"])
    assert len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "fragile_lib" / "a.py").write_text("b")
    assert git_state(tmp_path, ["fragile_lib"])["dirty"]


def test_results_table(tmp_path, example_record):
    one, two = example_record(), example_record(run_id="toy-d2", run={"dataset": "toy", "momentum": 0.9})
    two["rows"] = {"columns": ["test_point", "new", "spearman"], "data": [[7, "x", 0.25]]}
    lines = results_csv([one, two]).splitlines()
    assert lines[0] == ",".join([*COLUMNS, "momentum", "new"])
    cells = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [c["run_id"] for c in cells] == ["toy-d1", "toy-d1", "toy-d2"]
    assert [c["depth"] for c in cells] == ["1", "1", ""], "whole numbers with gaps stay whole"
    assert [c["spearman"] for c in cells] == ["0.5", "", "0.25"] and cells[2]["test_point"] == "7"
    assert results_csv([]) == ",".join(COLUMNS) + "\n"


def test_an_unreadable_record_is_told_and_the_others_stand(tmp_path, example_record):
    (tmp_path / "good.json").write_text(json.dumps(example_record()))
    (tmp_path / "bad.json").write_text('{"schema": 1, "run_')
    count, told = collect([tmp_path / "bad.json", tmp_path / "good.json"], tmp_path / "results.csv")
    assert count == 1 and len(told) == 1 and "bad.json" in told[0]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3
    assert not list(tmp_path.glob(".*tmp"))
