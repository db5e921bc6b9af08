"""The record and the table: what is written, what is read back, what is refused."""

import json
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fragile_lib.study.__main__ import main
from fragile_lib.study.collect import COLUMNS, read_results, results_csv
from fragile_lib.study.files import content_of
from fragile_lib.study.params import load_specs
from fragile_lib.study.plan import make_plan, prepare
from fragile_lib.study.record import record
from fragile_lib.study.record_file import LETTERS, packed, read_record, row_dicts
from fragile_lib.study.study import publish
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import json_text, plain, remove
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
    content = read_record(tmp_path / "result.json", "r")
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
    columns = {
        "few": [1, 1.0, 2, None] * 20,
        "truths": [True, None] * 40,
        "text": ["ok"] * 80,
        "numbers": [i / 7 for i in range(80)],
    }
    columns["many"] = [i % (len(LETTERS) + 1) for i in range(80)]
    rows = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
    content = example_record(rows=rows)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(packed(content)))
    assert json.dumps(read_record(path, "toy-d1")) == json.dumps(content)  # 1, 1.0 and true are told apart
    assert path.stat().st_size < 0.8 * len(json.dumps(content))
    empty = example_record(rows={"columns": ["seed"], "data": []})
    path.write_text(json.dumps(packed(empty)))
    assert row_dicts(read_record(path, "toy-d1")) == []


def rows(*data, columns=("seed", "fit", "spearman")):
    return {"rows": {"columns": list(columns), "data": [list(row) for row in data]}}


def packed_rows(*packed, columns=("seed", "spearman")):
    return {"rows": {"columns": list(columns), "packed": list(packed)}}


NESTED = "[" * 100_000 + "]" * 100_000
# What is done to a record of schema 1 (a text in its place, or other entries), and what is said of it.
DAMAGES = {
    "empty": ("", "cannot be read"),
    "cut short": ('{"schema": 1', "cannot be read"),
    "not UTF-8": (b"\xff\xfe", "cannot be read"),
    "a list": ("[]", "is no record"),
    "null": ("null", "is no record"),
    "another schema": ({"schema": 3}, "is no record"),
    "nested": (NESTED, "nested too deeply"),
    "nested inside": ('{"schema": 1, "run": ' + NESTED + "}", "nested too deeply"),
    "a fifo": (os.mkfifo, "cannot be read .Is a fifo"),
    "a folder": (Path.mkdir, "cannot be read .Is a directory.|is a folder"),
    "bare NaN": ({"seconds": float("nan")}, "NaN stands in it"),
    "infinity": ('{"schema": 1, "seconds": -Infinity}', "-Infinity stands in it"),
    "a number of 5,000 digits": ('{"schema": 1, "seconds": ' + "9" * 5000 + "}", "cannot be read"),
    "another run's": ({"run_id": "toy-d2"}, "is of the run 'toy-d2'"),
    "run id no text": ({"run_id": 3}, "run_id is of another type"),
    "no status": ({"status": None}, "status is of another type"),
    "run no mapping": ({"run": None}, "run is of another type"),
    "run of lists": ({"run": {"depth": [1]}}, "its run holds lists"),
    "points no list": ({"points": {}}, "points is of another type"),
    "points of numbers": ({"points": [1]}, "its points"),
    "seconds as text": ({"seconds": "1"}, "seconds is of another type"),
    "rows empty": ({"rows": {}}, "do not fit their columns"),
    "rows no list": ({"rows": {"columns": ["a"], "data": 3}}, "do not fit their columns"),
    "rows of numbers": ({"rows": {"columns": ["a"], "data": [1]}}, "do not fit their columns"),
    "a row too long": (rows([0, "a", 0.5, 1]), "do not fit their columns"),
    "a row too short": (rows([0, "a", 0.5], [1]), "do not fit their columns"),
    "a row as text": ({"rows": {"columns": ["a"], "data": ["x"]}}, "do not fit their columns"),
    "columns no texts": (rows([0], columns=[1]), "do not fit their columns"),
    "columns nested": (rows([0], columns=[["a"]]), "do not fit their columns"),
    "columns twice": (rows([0, 1], columns=["a", "a"]), "do not fit their columns"),
    "columns a text": ({"rows": {"columns": "ab", "data": [[1, 2]]}}, "do not fit their columns"),
    "packed with a strange letter": (packed_rows({"values": [1], "rows": "01"}), "do not fit their columns"),
    "packed of two lengths": (packed_rows([1], [2, 3]), "do not fit their columns"),
    "packed no list": (packed_rows(1, 2), "do not fit their columns"),
    "text for a number": (rows([0, "a", "0.5"]), "its column spearman holds what is no number"),
    "text among numbers": (rows([0, "a", 0.5], ["1", "a", 0.5]), "its column seed is not of one kind"),
    "a list in a row": (rows([0, "a", [0.5]]), "its column spearman is not of one kind"),
    "a number too large": ('{"rows": {"columns": ["spearman"], "data": [[1e999]]}}', "not JSON compliant"),
    "rows doubled": (rows([0, "a", 0.5], [1, "a", 0.5], [0, "a", 0.5]), "rows stand there twice: 3 rows, 2"),
    "rows of one key": (rows([0, "a", 0.5], [0, "a", 0.25]), "rows stand there twice"),
}


def damage(path, case, example_record):
    """Damage the record of toy-d1 at `path` as a case says; return what is to be said of it."""
    content, said = DAMAGES[case]
    if callable(content):
        remove(path)
        content(path)
    elif isinstance(content, dict):
        path.write_text(json.dumps(example_record(**content)))
    elif case == "a number too large":
        whole = json.dumps(example_record(rows=None))
        path.write_text(whole.replace('"rows": null', content[1:-1]))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return said


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_record_is_named_on_one_line_and_repeated_and_stops_nothing(toy, capsys, example_record, case):
    toy.finish()
    path = toy.run_dir("toy-d1") / "result.json"
    said = damage(path, case, example_record)
    with pytest.raises(InputError, match=f"^record = .*toy-d1/result.json': .*({said}).*study again$") as raised:
        read_record(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert main(["list"]) == 0 and "unreadable toy-d1\nfinished   toy-d2" in capsys.readouterr().out
    assert main(["collect"]) == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 2 and re.search(f"left out of the table: toy-d1: .*({said})", told)
    assert (toy.root / "runs/quick/results.csv").read_text().count("toy-d2") == 2
    for _ in range(2):  # an older file that was set aside is in the way of none
        damage(path, case, example_record)
        jobs, told = prepare(toy.root, "quick")
        assert [job.stamp.exists() for job in jobs] == [False, True]
        assert len(told) == 1 and "runs/quick/toy-d1/result.json" in told[0] and "the run is repeated" in told[0]
        assert re.search(said, told[0]) and not path.exists() and path.with_name("result.json.unreadable").exists()
    assert [job.state for job in make_plan(toy.root, "quick")] == ["missing", "finished"]


@pytest.mark.parametrize("case", ["half an archive", "empty", "nested", "bare NaN", "no status", "rows doubled"])
def test_a_damaged_published_record_is_named_and_not_taken(toy, example_record, case):
    toy.finish("laptop")
    publish(toy.root, "laptop", load_specs(toy.params.parent))
    shutil.rmtree(toy.root / "runs")
    path = toy.root / "reports/records/toy-d1/result.json.xz"
    if case == "half an archive":
        path.write_bytes(path.read_bytes()[:100])
        said = "cannot be read .is no whole archive"
    else:
        plain_path = path.with_suffix("")
        said = damage(plain_path, case, example_record)
        path.write_bytes(lzma.compress(plain_path.read_bytes()))
    _, told = prepare(toy.root, "laptop")
    assert len(told) == 2 and re.search(f"reports/records/toy-d1/result.json.xz .*({said})", told[0])
    assert [job.state for job in make_plan(toy.root, "laptop")] == ["missing", "finished"]


def test_a_record_that_was_changed_after_it_was_written_is_refused_however_it_is_stored(tmp_path):
    path = tmp_path / "r" / "result.json"
    write(path.parent)
    content = read_record(path)
    assert content["schema"] == 2 and len(content["digest"]) == 64
    for stored in (content, packed(content)):
        text = json.dumps(stored)
        path.write_text(text)
        assert read_record(path) == content
        for old, new in (("0.1235", "0.1236"), ('"depth": 3', '"depth": 4'), ('"ok"', '"no"'), ('"lissa"', '"exact"')):
            assert old in text
            path.write_text(text.replace(old, new))
            with pytest.raises(InputError, match="was changed after it was written|stand there twice"):
                read_record(path)
    for changes in ({"digest": ...}, {"machine": ...}, {"schema": 1}):
        changed = {key: value for key, value in (content | changes).items() if value is not ...}
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match="was changed after it was written"):
            read_record(path)


def test_every_committed_record_is_read_and_published_as_it_is():
    paths = sorted((Path(__file__).parents[2] / "reports" / "records").glob("*/result.json.xz"))
    assert len(paths) > 50
    for path in paths:
        record = read_record(path.with_name("result.json"))
        assert json_text(packed(record)) == content_of(path).decode(), path


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
    (tmp_path / "results.csv").write_text(results_csv([example_record(profile="NA"), two]))
    table = read_results(tmp_path / "results.csv")
    assert list(table["profile"]) == ["NA", "NA", "quick"] and list(table["new"].isna()) == [True, True, False]
    assert list(table["spearman"].isna()) == [False, True, False]
