"""Interrupts and kills: what is finished stays, nothing is left running, and the same command does the rest."""

import os
import signal
import subprocess
import time

import psutil
import pytest


def wait_for(condition, seconds=90.0):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.05)


def family(process):
    above = psutil.Process(process.pid)
    return [above, *above.children(recursive=True)]


def words(process):
    """Return a process's command line; empty where it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def engine_of(processes):
    found = [p for p in processes if "--nolock" in words(p)]
    assert len(found) == 1
    return found[0]


def gone(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def at_the_terminal():
    """Let Ctrl-C arrive: what a shell starts in the background inherits that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(toy):
    """Return a call that starts a study and waits until its one held-up run computes."""
    (toy.notebook.parent / "hold").touch()
    started = []

    def call():
        process = subprocess.Popen(
            toy.command("run", "--only-runs", "--jobs", "2"),
            **{"env": toy.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
            preexec_fn=at_the_terminal,
        )
        started.append(process)
        wait_for((toy.run_dir("toy-d1") / "result.json").exists)
        # The notebook's copy is saved when its first cell is done.
        wait_for(lambda: any("ipykernel_launcher" in words(p) for p in family(process)))
        wait_for(lambda: list(toy.run_dir("toy-d2").glob(".partial-*/run.ipynb")))
        return process, family(process)

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()


def test_resuming_after_interrupts_and_kills(toy, start):
    toy.edit(
        "quick:\n    grids: {depths: {depth: [1, 2]}}",
        "quick:\n    grids: {quick: {depth: [1]}, slow: {depth: [2], mode: [hold]}}",
    )
    # Ctrl-C. Before it, a second study on the same profile is refused.
    process, processes = start()
    before = (toy.run_dir("toy-d1") / "result.json").stat().st_mtime_ns
    refused = toy.call("run", "--only-runs")
    assert refused.returncode == 2 and f"is being run by process {process.pid}" in refused.stderr
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "interrupted; what finished is kept" in output
    wait_for(lambda: gone(processes), 5)
    assert not (toy.run_dir("toy-d2") / "failure.json").exists(), "interrupted is not failed"

    # kill -9 of the study alone: its notebooks end by themselves; Snakemake at the latest when the next study starts.
    process, processes = start()
    orphan = engine_of(processes)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: gone(set(processes) - {orphan}), 10)

    # kill -9 of Snakemake alone: the study ends, and names what is missing.
    process, processes = start()
    assert gone([orphan])
    os.kill(engine_of(processes).pid, signal.SIGKILL)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "failed: toy-d2: it ended without a result" in output
    wait_for(lambda: gone(processes), 10)

    # kill -9 of everything.
    process, processes = start()
    for one in processes:
        os.kill(one.pid, signal.SIGKILL)
    process.wait(10)

    (toy.notebook.parent / "hold").unlink()
    again = toy.call("run", "--only-runs", "--jobs", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[1 of 2] finished already; 1 to run" in again.stdout and "[2 of 2] finished toy-d2" in again.stdout
    assert (toy.run_dir("toy-d1") / "result.json").stat().st_mtime_ns == before
    assert not list(toy.run_dir("toy-d2").glob(".partial*"))
