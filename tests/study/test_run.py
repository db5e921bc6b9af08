"""One run with a real kernel: promotion, a killed kernel, a timed-out cell, a full disk; and papermill by hand."""

import json
import subprocess
import sys

import nbformat
import pytest

from fragile_lib.study import execute as execute_module
from fragile_lib.study import run as run_module
from fragile_lib.study.execute import NotebookFailed
from fragile_lib.study.plan import make_plan, prepare
from fragile_lib.study.record import read_record


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Undo what a run sets for its kernel, as each run normally has a process of its own."""
    for name in (*execute_module.THREAD_VARIABLES, "TQDM_DISABLE", "PYTHONHASHSEED", "FRAGILE_FINGERPRINT"):
        monkeypatch.setenv(name, "1")


def planned(toy, run_id="toy-d1"):
    prepare(toy.root, "quick")
    return toy.run_dir(run_id)


def set_mode(toy, mode):
    text = toy.params.read_text()
    toy.params.write_text(text.replace("depth: [1, 2]", f"depth: [1, 2], mode: [{mode}]"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_leaves_a_complete_record(toy):
    folder = planned(toy)
    (folder / ".partial-1").mkdir()  # left by a run that was killed
    seconds = run_module.execute(folder)
    assert names(folder) == [".job.json", "params.yaml", "result.json", "run.ipynb"]
    record = read_record(folder / "result.json")
    assert record["run_id"] == "toy-d1" and record["rows"]["data"] == [[0, "exact", 0.5], [1, "exact", 0.5]]
    assert record["threads"] == 1 and record["parameters"]["seeds"] == [0, 1]
    assert record["seconds_total"] == round(seconds, 3) and 0 < record["orchestration_seconds"] < seconds
    assert make_plan(toy.root, "quick")[0].state == "finished"
    notebook = nbformat.read(folder / "run.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert str(toy.root) not in (folder / "run.ipynb").read_text(), "a published page must not tell of folders"
    assert notebook.cells[-1].outputs[0].text.count("exact") == 1


@pytest.mark.parametrize(
    ("mode", "error", "says"),
    [
        ("die", "DeadKernelError", "the kernel died in mid-run"),
        ("error", "AssertionError", "told to fail"),
        ("silent", "NoRecord", "without a good record"),
    ],
)
def test_a_failure_keeps_the_older_result(toy, mode, error, says):
    toy.finish()
    set_mode(toy, mode)
    folder = planned(toy)
    older = (folder / "result.json").read_bytes()
    with pytest.raises(NotebookFailed, match=says):
        run_module.execute(folder)
    assert names(folder) == [".job.json", "failed.ipynb", "failure.json", "params.yaml", "result.json"]
    assert (folder / "result.json").read_bytes() == older
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"] == error and says in failure["message"] and failure["run_id"] == "toy-d1"
    assert str(toy.root) not in failure["traceback"]
    assert make_plan(toy.root, "quick")[0].state == "failed"


def test_a_cell_that_takes_too_long(toy):
    set_mode(toy, "hold")
    (toy.notebook.parent / "hold").touch()
    folder = planned(toy)
    job = json.loads((folder / ".job.json").read_text())
    (folder / ".job.json").write_text(json.dumps({**job, "cell_minutes": 0.02}))
    with pytest.raises(NotebookFailed, match="a cell ran longer than 0.02 minutes; raise limits.cell_minutes"):
        run_module.execute(folder)
    assert json.loads((folder / "failure.json").read_text())["error"] == "CellTimeoutError"


@pytest.mark.parametrize(
    ("message", "times"),
    [("Kernel died before replying to kernel_info", 2), ("Kernel didn't respond in 60", 2), ("x", 1)],
)
def test_a_kernel_that_does_not_start_is_tried_once_more_and_nothing_else_is(toy, monkeypatch, message, times):
    calls = []

    def fail(*_):
        calls.append(1)
        raise RuntimeError(message)

    monkeypatch.setattr(execute_module, "_papermill", fail)
    with pytest.raises(NotebookFailed, match=f"RuntimeError: {message}"):
        run_module.execute(planned(toy))
    assert len(calls) == times


@pytest.fixture
def small_disk(toy):
    """Mount a disk of 64 KB over the quick profile's runs, where the tests may."""
    runs = toy.root / "runs" / "quick"
    runs.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", runs], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk; a full disk is simulated in the next test")
    yield runs
    subprocess.run(["umount", runs], check=True)


def test_a_disk_that_is_full(toy, small_disk):
    toy.finish()
    older = (small_disk / "toy-d1" / "result.json").read_bytes()
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(b"x" * 1024)
    call = toy.call("execute", str(small_disk / "toy-d1"))
    assert call.returncode == 1 and call.stderr == ""
    assert "failed toy-d1: the disk is full" in call.stdout or "No space left on device" in call.stdout
    assert (small_disk / "toy-d1" / "result.json").read_bytes() == older
    (small_disk / "ballast").unlink()
    assert toy.call("execute", str(small_disk / "toy-d1")).returncode == 0


def test_a_disk_that_fills_while_the_record_is_promoted(toy, monkeypatch):
    toy.finish()
    folder = planned(toy)
    older = (folder / "result.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "execute_notebook", lambda *_, **__: 1.0)
    monkeypatch.setattr(run_module, "_finished_record", lambda *_: {})
    monkeypatch.setattr(run_module, "write_json", full)
    with pytest.raises(NotebookFailed, match="No space left on device; free the disk"):
        run_module.execute(folder)
    assert (folder / "result.json").read_bytes() == older and names(folder)[0] == ".job.json"
    assert not list(folder.glob(".partial*"))


def test_a_folder_that_is_no_run(toy):
    call = toy.call("execute", str(toy.root))
    assert call.returncode == 2 and call.stderr.startswith("error: run folder = ") and "list" in call.stderr


def by_hand(toy, *arguments):
    """Call papermill's own command line, that knows nothing of this project."""
    command = [sys.executable, "-m", "papermill", str(toy.notebook), "out.ipynb", "--no-progress-bar", *arguments]
    return subprocess.run(command, cwd=toy.root, env=toy.environment, capture_output=True, text=True, timeout=120)


def test_papermill_by_hand(toy):
    folder = planned(toy, "toy-d2")
    before = set(toy.files())
    call = by_hand(toy, "-f", str(folder / "params.yaml"))
    assert call.returncode == 0, call.stderr
    assert set(toy.files()) - before == {"out.ipynb"}, "by hand, no record is written"
    assert "0.33" in (toy.root / "out.ipynb").read_text()


def test_papermill_by_hand_refuses_an_unknown_parameter(toy):
    call = by_hand(toy, "-p", "detph", "3")
    assert call.returncode != 0
    assert "detph = 3: is not a parameter; did you mean 'depth'?" in call.stderr


def test_a_study_process_does_not_import_torch():
    code = (
        "import sys; sys.modules['rfc3987_syntax'] = None\n"  # as execute_notebook does, for the same reason
        "import papermill, fragile_lib.study.study, fragile_lib.study.kernel\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert call.stdout.split() == ["False", "False"], call.stderr
