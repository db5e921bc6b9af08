"""The kernel that papermill executes a notebook in; apart from the rest, which needs no Jupyter."""

from __future__ import annotations

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class OwnKernelManager(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels are installed: a `python3` of the user's may be another Python."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Return a spec for `sys.executable`; without history, whose one database parallel kernels would lock."""
        argv = [sys.executable, "-m", "fragile_lib.study.sources", "-f", "{connection_file}"]
        options = ["--HistoryManager.enabled=False"]
        # Without this note the connection is not encrypted, and the kernel warns of it at each start.
        able = {"supported_encryption": ["curve"]}
        return KernelSpec(argv=[*argv, *options], display_name="Python 3", language="python", metadata=able)
