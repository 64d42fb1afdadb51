"""Memory of a process as the kernel counts it, and of one that imports what a worker does before it has a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dlrm_factory.errors import ServingError

__all__ = [
    "Memory",
    "imports_alone",
    "mapped_file",
    "memory_of",
]

_FIELD = re.compile(r"^(\w+): +(\d+) kB$")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(?P<path>.*)$")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process, from /proc/PID/smaps.

    Fields:
        private: pages that this process alone maps.
        shared: pages that others map too.
        proportional: private, and of each shared page its share (PSS).
        table_pages: of the table file, in this process's page table.
        lone_table_pages: of these, those that no other process has touched yet. They are counted as private, but
            they are the file's own pages: another worker that reads them maps the same ones.
        private_table_copies: copies of pages of the table file, which nobody shares.
    """

    private: int
    shared: int
    proportional: int
    table_pages: int
    lone_table_pages: int
    private_table_copies: int

    @property
    def own(self) -> int:
        """Memory of this process that no other can share: private, without the table file's unchanged pages."""
        return self.private - self.lone_table_pages

    def as_dict(self) -> dict[str, int]:
        """Encode for JSON."""
        return asdict(self) | {"own": self.own}


def memory_of(pid: int, table_file: str = "") -> Memory:
    """Memory of process ``pid``. ServingError if the process is gone.

    ``table_file``: the end of the mapped table file's path.
    """
    whole: Counter[str] = Counter()
    tables: Counter[str] = Counter()
    in_tables = False
    for line in _smaps(pid):
        if field := _FIELD.match(line):
            whole[field[1]] += int(field[2]) * 1024
            if in_tables:
                tables[field[1]] += int(field[2]) * 1024
        elif mapping := _MAPPING.match(line):
            in_tables = bool(table_file) and mapping["path"].endswith(table_file)
    return Memory(
        private=whole["Private_Clean"] + whole["Private_Dirty"],
        shared=whole["Shared_Clean"] + whole["Shared_Dirty"],
        proportional=whole["Pss"],
        table_pages=tables["Rss"],
        # A page that was written lately counts as dirty until it is on disk; only a copy is anonymous.
        lone_table_pages=tables["Private_Clean"] + tables["Private_Dirty"] - tables["Anonymous"],
        private_table_copies=tables["Anonymous"],
    )


def mapped_file(pid: int, name: str) -> Path | None:
    """The file called ``name`` that process ``pid`` maps; None if it maps none."""
    for line in _smaps(pid):
        mapping = _MAPPING.match(line)
        if mapping and Path(mapping["path"]).name == name:
            return Path(mapping["path"])
    return None


def _smaps(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ServingError(f"the memory of process {pid} cannot be read: {error.strerror}") from error


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
    """Memory of a process that imports the handler of the unpacked archive. ServingError if it cannot.

    The worker lives while the block runs: a lone worker's pages of libraries would else count as its own.
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
