"""The grid on a real SLURM of one node, which is started here and stopped; a killed daemon on the way.

It needs Debian's packages slurm-wlm and munge, the right to run them, and the executor's plugin; .ci/run installs them.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import wait_for

from fragile_lib.study.plan import make_plan

WORKFLOW = Path(__file__).parents[2] / "workflow"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr")
CONFIGURATION = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=6000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=node Default=YES State=UP
"""


def missing() -> str:
    """Return why there can be no cluster here; "" where there can."""
    absent = [name for name in PROGRAMS if not program(name)]
    if absent:
        return f"{', '.join(absent)} are not there: apt-get install slurm-wlm munge"
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        return "the executor is not there: pip install snakemake-executor-plugin-slurm"
    return "" if os.geteuid() == 0 else "no right to run slurmd"


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """A SLURM of one node in a folder of its own; its commands find their configuration by wrappers in `bin`."""

    def __init__(self, home: Path) -> None:
        self.home, self.daemons = home, {}
        for name in ("state", "spool", "bin"):
            (home / name).mkdir()
        (home / "munge.key").write_bytes(os.urandom(1024))
        (home / "munge.key").chmod(0o400)
        home.chmod(0o700)
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        text = CONFIGURATION.format(home=home, host=socket.gethostname().partition(".")[0], ports=ports)
        (home / "slurm.conf").write_text(text)
        (home / "gres.conf").write_text("NodeName=node Name=gpu Count=2 File=/dev/null,/dev/zero\n")  # cards in name
        for name in PROGRAMS[3:]:
            wrapper = home / "bin" / name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={home}/slurm.conf exec {program(name)} "$@"\n')
            wrapper.chmod(0o755)
        files = ("socket", "pid-file", "log-file", "seed-file", "key-file")
        names = {name: f"--{name}={home}/munge.{name.removesuffix('-file')}" for name in files}
        self.start("munged", "--force", "--foreground", *names.values())
        wait_for((home / "munge.socket").exists, "munged", 20)
        self.start("slurmctld", "-D", "-f", f"{home}/slurm.conf")
        self.start("slurmd", "-D", "-N", "node", "-f", f"{home}/slurm.conf")
        wait_for(lambda: "idle" in self.call("sinfo", "-h"), "an idle node", 60)

    def start(self, name: str, *options: str) -> None:
        said = (self.home / f"{name}.said").open("ab")
        own = {name: value for name, value in os.environ.items() if not name.startswith("FRAGILE_")}
        self.daemons[name] = subprocess.Popen([program(name), *options], stdout=said, stderr=said, env=own)

    def call(self, name: str, *options: str) -> str:
        return subprocess.run([self.home / "bin" / name, *options], capture_output=True, text=True).stdout

    def stop(self) -> None:
        self.call("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            daemon.wait(30)


@pytest.fixture
def cluster(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    yield found
    found.stop()


@pytest.mark.slow
def test_a_grid_runs_on_slurm_and_survives_a_killed_daemon(toy, cluster):
    toy.edit("depth: [1, 2]}}\n  laptop", "depth: [1, 2, 3], mode: [hold]}}\n  laptop")
    hold = toy.notebook.parent / "hold"
    hold.touch()
    profile = toy.root / "profile"
    profile.mkdir()
    text = (WORKFLOW / "profiles" / "slurm" / "config.yaml").read_text()
    (profile / "config.yaml").write_text(re.sub(r"# (?=slurm_partition: main|gpu: 1)", "", text))
    command = [sys.executable, "-m", "snakemake", "-s", WORKFLOW / "Snakefile", "--workflow-profile", profile]
    command += ["--config", "profile=quick", "--slurm-init-seconds-before-status-checks", "3"]
    toy.environment["PATH"] = f"{cluster.home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    given = {"cwd": toy.root, "env": toy.environment, "text": True}
    dry = subprocess.run([*command, "-n"], **given, capture_output=True)
    assert dry.returncode == 0 and re.search(r"^run +3$", dry.stdout, re.M), dry.stdout + dry.stderr
    with (toy.root / "said").open("w") as said:
        engine = subprocess.Popen(command, **given, stdout=said, stderr=said)
        try:
            wait_for(lambda: list(toy.root.glob("runs/quick/*/.partial-*/run.ipynb")), "a run that computes")
            asked = cluster.call("squeue", "-h", "-O", "Partition:20,tres-per-job:20")
            assert {tuple(line.split()) for line in asked.splitlines()} == {("main", "gres:gpu:1")}
            cluster.daemons["slurmd"].send_signal(signal.SIGKILL)
            cluster.daemons["slurmd"].wait()
            time.sleep(2)
            cluster.start("slurmd", "-D", "-N", "node", "-f", f"{cluster.home}/slurm.conf")
            hold.unlink()
            code = engine.wait(400)
        finally:
            engine.kill()
    assert code == 0, (toy.root / "said").read_text()
    assert [job.state for job in make_plan(toy.root, "quick")] == ["finished"] * 3
    after = toy.call("run", "--only-runs")
    assert after.returncode == 0 and "[3 of 3] all runs are up to date" in after.stdout
    wait_for(lambda: not cluster.call("squeue", "-h"), "an empty queue", 60)
    assert not toy.processes()
