"""Stand-ins for the clients that fetch data, in the place of a network."""

import textwrap

import pytest


@pytest.fixture
def npm_gives(monkeypatch, tmp_path):
    """Let the npm client give an archive; what it was asked stands in bin/npm.log."""

    def install(archive):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        log = 'mkdir cache && echo copy > cache/copy && echo "$@"'
        program.write_text(f"#!/bin/sh\n{log} > {program}.log && cp {archive} .\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return install


@pytest.fixture
def torchvision_does(monkeypatch, tmp_path):
    """Give the child process a torchvision whose sets(root, download) run this code."""

    def install(body):
        package = tmp_path / "stand-in" / "torchvision"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        head = "import shutil, socket, time\nfrom pathlib import Path\ndef MNIST(root, download):\n"
        (package / "datasets.py").write_text(head + textwrap.indent(body, "    ") + "\nCIFAR10 = CIFAR100 = MNIST\n")
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return install
