"""What a worker's process takes before it has a model: the interpreter and what the handler imports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.bench.memory.smaps import Memory, memory_of

__all__ = ["imports_alone"]

# TorchServe's worker and the archive's handler, as a worker imports them, and then nothing.
_PROGRAM = """
import gc, importlib, sys
sys.path.insert(0, sys.argv[1])
import ts.model_service_worker, ts.model_loader, ts.service
importlib.import_module("dlrm_handler")
import torch
gc.collect()
print("imported", flush=True)
sys.stdin.read()
"""


@contextmanager
def imports_alone(archive_folder: Path) -> Iterator[Memory]:
    """Of a process that imports the handler of the unpacked archive. ServingError if it cannot.

    It lives while the block runs: a lone worker's pages of libraries would else count as its own.
    """
    environment = {**os.environ, "PYTHONPATH": ""}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(archive_folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        printed = process.stdout.readline()
        if printed.strip() != "imported":
            raise ServingError(f"the handler cannot be imported: {process.stderr.read().strip()[-500:]}")
        yield memory_of(process.pid)
