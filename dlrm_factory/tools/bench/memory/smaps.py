"""A process's memory as the kernel counts it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from dlrm_factory.errors import ServingError

__all__ = ["Memory", "mapped_file", "memory_of"]

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
        """What this process takes that no other can share: private, without the table file's unchanged pages."""
        return self.private - self.lone_table_pages

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self) | {"own": self.own}


def memory_of(pid: int, table_file: str = "") -> Memory:
    """Of process ``pid``; ``table_file`` is the end of the mapped table file's path. ServingError if it is gone."""
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
