"""One run through papermill: what it leaves, what a failure leaves; the grid under Snakemake; interrupts and kills."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from toy import QUICK_GRID, wait_for

from fragile_lib.study import execute as execute_module
from fragile_lib.study import run as run_module
from fragile_lib.study.execute import THREADED, NotebookFailed
from fragile_lib.study.params import load_specs
from fragile_lib.study.plan import make_plan, prepare
from fragile_lib.study.record_file import read_record, write_record
from fragile_lib.tools.errors import InputError
from fragile_lib.tools.files import locked

PROJECT = Path(__file__).parents[2]
WORKFLOW = PROJECT / "workflow"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Undo what a run sets for its kernel, as each run normally has a process of its own."""
    names = [f"{name}_NUM_THREADS" for name in THREADED]
    for name in (*names, "TQDM_DISABLE", "PYTHONHASHSEED", "PYTHONWARNINGS", "FRAGILE_FINGERPRINT"):
        monkeypatch.setenv(name, "" if name == "PYTHONWARNINGS" else "1")


def planned(toy, mode="ok"):
    toy.edit("depth: [1, 2]", f"depth: [1, 2], mode: [{mode}]")
    prepare(toy.root, "quick")
    return toy.run_dir("toy-d1")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- one run ---------------------------------------------------------------------------------------------------------


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
        ("hold", "CellTimeoutError", "a cell ran longer than 0.02 minutes; raise limits.cell_minutes"),
    ],
)
def test_a_failure_keeps_the_older_result(toy, mode, error, says):
    toy.finish()
    (toy.notebook.parent / "hold").touch()
    folder = planned(toy, mode)
    job = json.loads((folder / ".job.json").read_text())
    if mode == "hold":
        (folder / ".job.json").write_text(json.dumps({**job, "cell_minutes": 0.02}))
    older = (folder / "result.json").read_bytes()
    with pytest.raises(NotebookFailed, match=says):
        run_module.execute(folder)
    assert names(folder) == [".job.json", "failed.ipynb", "failure.json", "params.yaml", "result.json"]
    assert (folder / "result.json").read_bytes() == older
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"] == error and says in failure["message"] and failure["run_id"] == "toy-d1"
    assert str(toy.root) not in failure["traceback"]
    assert make_plan(toy.root, "quick")[0].state == "failed"


@pytest.fixture
def library(toy):
    """Return a module of the toy's own package, whose one function its notebook reaches."""
    module = toy.root / "fragile_lib" / "extra.py"
    module.parent.mkdir()
    module.write_text("def f():\n    return 1\n")
    toy.write_notebook({**toy.cells, "work": "if False:\n    from fragile_lib.extra import f\n    f()"})
    return module


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


EDITS = {
    "notebook": lambda toy, library: edit(toy.notebook, "1 / (1 + depth)", "1 / (2 + depth)"),
    "library": lambda toy, library: edit(library, "return 1", "return 2"),
    "notebook, broken": lambda toy, library: toy.notebook.write_text("{"),
    "parameters": lambda toy, library: edit(toy.run_dir("toy-d1") / "params.yaml", "depth: 1", "depth: 3"),
    "prose": lambda toy, library: edit(toy.notebook, "# A toy", "# Another"),
}


@pytest.mark.parametrize(
    ("what", "when", "error"),
    [
        *[(what, "before", "Changed") for what in ("notebook", "library", "parameters")],
        ("notebook, broken", "before", "InputError"),
        *[(what, "as papermill reads it", "Changed") for what in ("notebook", "library")],
        ("library", "during", "Changed"),
        *[("prose", when, None) for when in ("before", "as papermill reads it", "during")],
        ("notebook", "during", None),
    ],
)
def test_a_record_belongs_to_the_code_that_was_planned(toy, library, example_record, monkeypatch, what, when, error):
    """What papermill has read decides: an edit of the notebook after that is in no record, and spoils none."""
    toy.finish()
    toy.edit("certify: true", "certify: false")
    folder = planned(toy)
    older = (folder / "result.json").read_bytes()

    def stand_in(source, output, parameters, root, **_):
        if when == "as papermill reads it":
            EDITS[what](toy, library)
        notebook = json.loads(source.read_text())
        injected = {"cell_type": "code", "source": "x = 1", "metadata": {"tags": ["injected-parameters"]}}
        notebook["cells"].insert(2, injected)
        if when == "during":
            EDITS[what](toy, library)
        output.write_text(json.dumps(notebook))
        content = example_record(fingerprint=os.environ["FRAGILE_FINGERPRINT"])
        write_record(output.with_name("result.json"), content)
        return 1.0

    monkeypatch.setattr(run_module, "execute_notebook", stand_in)
    if when == "before":
        EDITS[what](toy, library)
    if error:
        with pytest.raises(NotebookFailed) as raised:
            run_module.execute(folder)
        assert raised.value.error == error
        assert error != "Changed" or "changed since it was planned; run the study again" in raised.value.message
        assert (folder / "result.json").read_bytes() == older and not list(folder.glob(".partial*"))
        assert json.loads((folder / "failure.json").read_text())["error"] == error
    else:
        run_module.execute(folder)
        assert read_record(folder / "result.json")["digest"] and (folder / "result.json").read_bytes() != older


PUT_BACK = """
from pathlib import Path
module, text = Path("../fragile_lib/extra.py"), Path("../fragile_lib/extra.py").read_text()
module.write_text(text.replace(*Path("edit").read_text().split("|")))
from fragile_lib.extra import f
module.write_text(text)
rows_of = f()
"""


@pytest.mark.parametrize(
    ("edit", "plain", "refused"),
    [("return 1|return 2", [], True), ("return 1|return 2", ["--plain"], True), ("# one|# two", ["--plain"], False)],
)
def test_what_the_kernel_imported_counts_though_the_edit_is_put_back(toy, library, edit, plain, refused):
    """The first cell stands for whoever edits the library while the kernel starts."""
    for name in ("study", "tools"):
        shutil.copytree(PROJECT / "fragile_lib" / name, library.parent / name)
    (library.parent / "__init__.py").touch()
    library.write_text("def f():\n    return 1  # one\n")
    toy.write_notebook({**toy.cells, "work": PUT_BACK})
    (toy.notebook.parent / "edit").write_text(edit)
    toy.environment["PYTHONPATH"] = str(toy.root)
    call = toy.call("execute", *plain, str(planned(toy)))
    assert call.returncode == int(refused), call.stdout + call.stderr
    assert ("changed since it was planned; run the study again" in call.stdout) is refused
    assert (toy.run_dir("toy-d1") / "result.json").exists() is not refused
    assert library.read_text().endswith("return 1  # one\n")


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
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", runs], capture_output=True).returncode:
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

    monkeypatch.setattr(run_module, "_finished_record", lambda *_: {})
    monkeypatch.setattr(run_module, "execute_for_study", lambda *_, **__: 1.0)
    monkeypatch.setattr(run_module, "write_record", full)
    with pytest.raises(NotebookFailed, match="the disk is full .No space left on device.; free some"):
        run_module.execute(folder)
    assert (folder / "result.json").read_bytes() == older and names(folder)[0] == ".job.json"
    assert not list(folder.glob(".partial*"))


def test_a_folder_that_is_no_run(toy):
    call = toy.call("execute", str(toy.root))
    assert call.returncode == 2 and call.stderr.startswith("error: run folder = ") and "list" in call.stderr


def test_papermill_by_hand_knows_nothing_of_the_study(toy):
    folder = planned(toy)
    before = set(toy.files())
    command = [sys.executable, "-m", "papermill", str(toy.notebook), "out.ipynb", "--no-progress-bar"]
    command += ["-f", str(folder / "params.yaml")]
    call = subprocess.run(command, cwd=toy.root, env=toy.environment, capture_output=True, text=True, timeout=120)
    assert call.returncode == 0, call.stderr
    assert set(toy.files()) - before == {"out.ipynb"}, "by hand, no record is written"
    assert "0.5" in (toy.root / "out.ipynb").read_text()
    with pytest.raises(papermill.PapermillExecutionError, match="detph = 3: is not a parameter; did you mean 'depth'?"):
        papermill.execute_notebook(toy.notebook, None, {"detph": 3}, progress_bar=False)


def test_a_study_process_does_not_import_torch():
    code = (
        "import sys; from fragile_lib.study.execute import spare_the_grammar; spare_the_grammar()\n"
        "import papermill, fragile_lib.study.study\n"
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert call.stdout.split() == ["False", "False"], call.stderr


# -- the grid --------------------------------------------------------------------------------------------------------


def test_a_grid_with_a_failure_and_its_repair(toy):
    toy.edit(QUICK_GRID, "quick:\n    grids: {good: {depth: [1, 2]}, bad: {depth: [3], mode: [die]}}")
    first = toy.call("run", "--only-runs", "--jobs", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "[2 of 3] finished toy-d" in first.stdout and "failed: toy-d3: the kernel died in mid-run" in first.stdout
    results = {d: toy.run_dir(f"toy-d{d}") / "result.json" for d in (1, 2, 3)}
    assert [path.exists() for path in results.values()] == [True, True, False]

    # Repair the one, truncate another: only these two run again.
    toy.edit("mode: [die]", "mode: [ok]")
    results[2].write_text(results[2].read_text()[:100])
    before = results[1].stat().st_mtime_ns
    second = toy.call("run", "--only-runs", "--jobs", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "toy-d2/result.json" in second.stdout and "the run is repeated" in second.stdout
    assert "[1 of 3] finished already; 2 to run" in second.stdout and "[3 of 3] finished in" in second.stdout
    assert results[1].stat().st_mtime_ns == before and not (toy.run_dir("toy-d3") / "failure.json").exists()

    third = toy.call("run", "--only-runs")
    assert third.returncode == 0 and third.stdout == "[3 of 3] all runs are up to date\n"

    # Called directly, as on a cluster, Snakemake finds the same.
    command = [sys.executable, "-m", "snakemake", "-s", WORKFLOW / "Snakefile", "-d", toy.root, "-n", "--cores", "1"]
    command += ["--workflow-profile", WORKFLOW / "profiles" / "default"]
    dry = subprocess.run(command, env=toy.environment, capture_output=True, text=True, timeout=60)
    assert dry.returncode == 0 and "Nothing to be done" in dry.stdout + dry.stderr
    command += ["--config", "profile=0123"]
    wrong = subprocess.run(command, env=toy.environment, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 1 and wrong.stderr.endswith(
        "\nerror: profile = 123: is not there; there are quick, laptop\n"
    )


def test_table_page_and_report_follow_the_runs(toy):
    for name in ("claims.yaml", "report.yaml"):
        shutil.copy(PROJECT / "params" / name, toy.params.parent)
    toy.finish()
    whole = toy.call("run")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "all runs are up to date" in whole.stdout and "runs/quick/results.csv: 2 of 2 runs" in whole.stdout
    assert "page toy: executed" in whole.stdout
    index = toy.root / "runs" / "quick" / "report" / "index.html"
    assert f"report: open {index.as_uri()}" in whole.stdout and index.exists()
    assert not (toy.root / "reports").exists(), "the quick profile never touches the study of record"

    toy.edit("page: {depth: 1}", "page: {depth: 1, mode: error}")
    failed = toy.call("run")
    assert failed.returncode == 1 and "failed: page toy: AssertionError: told to fail" in failed.stdout
    assert "report: open" in failed.stdout, "the report is built all the same"


def test_the_grids_of_iris():
    iris = load_specs(PROJECT / "params")["iris"]
    for profile, seeds in (("laptop", 10), ("paper", 50)):
        runs = [run.parameters for run in iris.runs(profile)]
        points = {(p["activation"], p["depth"], p["width"], p["weight_decay"]) for p in runs}
        depths = {(a, d, 5, w) for a in ("relu", "tanh") for d in range(1, 9) for w in (0.005, 0.0)}
        widths = {("relu", 1, width, w) for width in (8, 14, 20, 30, 40, 50) for w in (0.005, 0.0)}
        main = [p for p in runs if not p["removed_shares"] and 0 in p["seeds"]]
        assert points == depths | widths and len(main) == len(points)
        assert all(p["seeds"] in (list(range(seeds)), list(range(10, 50))) for p in runs)
        everywhere = [p for p in runs if "all" in p["train_choices"]]
        assert {(p["activation"], p["depth"], p["width"]) for p in everywhere} == {("relu", 1, 5)}
    assert len(iris.runs("quick")) == 4
    assert {run.run_id for run in iris.runs("quick")} < {run.run_id for run in iris.runs("laptop")}


# -- interrupts and kills: what is finished stays, nothing is left running, the same command does the rest -------------


@pytest.fixture
def start(toy):
    """Return a call that starts a study and waits until its one held-up run computes."""
    (toy.notebook.parent / "hold").touch()
    started = []

    def call():
        process = subprocess.Popen(
            toy.command("run", "--only-runs", "--jobs", "2"),
            **{"env": toy.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
            # Let Ctrl-C arrive: what a shell starts in the background inherits that it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        wait_for((toy.run_dir("toy-d1") / "result.json").exists, "the first record")
        wait_for(lambda: toy.processes("fragile_lib.study.sources"), "a kernel")
        # The notebook's copy is saved when its first cell is done.
        wait_for(lambda: list(toy.run_dir("toy-d2").glob(".partial-*/run.ipynb")), "a run that computes")
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()


def test_a_process_whose_owner_is_gone_ends_even_where_its_child_ended_meanwhile():
    code = (
        "import psutil, time; from fragile_lib.tools.processes import end_with_owners\n"
        "def fail(process): raise psutil.NoSuchProcess(process.pid)\n"
        "psutil.Process.kill, psutil.Process.children = fail, lambda process, recursive: [process]\n"
        "end_with_owners(); time.sleep(60)"
    )
    owner = subprocess.Popen(["sleep", "60"])
    environment = os.environ | {"FRAGILE_OWNERS": str(owner.pid)}
    owned = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    time.sleep(1)
    owner.kill()
    owner.wait()
    assert owned.wait(20) == 1


def test_who_is_refused_learns_who_holds_the_lock_though_its_name_comes_a_moment_later(tmp_path):
    """Two studies that start at once: the second looks before the first has written who it is."""
    path = tmp_path / ".quick.lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, lambda: path.write_text("process 7 on x")).start()
        with pytest.raises(InputError, match="held by process 7 on x"), locked(path, "profile", "q", "held by {}"):
            pass


def test_resuming_after_interrupts_and_kills(toy, start):
    toy.edit(QUICK_GRID, "quick:\n    grids: {quick: {depth: [1]}, slow: {depth: [2], mode: [hold]}}")
    # Ctrl-C. Before it, a second study on the same profile is refused.
    process = start()
    before = (toy.run_dir("toy-d1") / "result.json").stat().st_mtime_ns
    refused = toy.call("run", "--only-runs")
    assert refused.returncode == 2 and f"is being run by process {process.pid}" in refused.stderr
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "interrupted; what finished is kept" in output
    wait_for(lambda: not toy.processes(), "all to end", 5)
    assert not (toy.run_dir("toy-d2") / "failure.json").exists(), "interrupted is not failed"

    # kill -9 of the study alone: everything that it started ends by itself.
    process = start()
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not toy.processes(), "all to end", 10)

    # kill -9 of Snakemake alone: the study ends, and names what is missing.
    process = start()
    (snakemake,) = toy.processes("--nolock")
    snakemake.kill()
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "failed: toy-d2: it ended without a result" in output
    wait_for(lambda: not toy.processes(), "all to end", 10)

    (toy.notebook.parent / "hold").unlink()
    again = toy.call("run", "--only-runs", "--jobs", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[1 of 2] finished already; 1 to run" in again.stdout and "[2 of 2] finished toy-d2" in again.stdout
    assert (toy.run_dir("toy-d1") / "result.json").stat().st_mtime_ns == before
    assert not list(toy.run_dir("toy-d2").glob(".partial*"))
