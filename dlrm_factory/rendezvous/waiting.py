"""Notes in the temporary folder: hosts that groups wait for, and the addresses that hosts had before.

A leader that waits answers nothing, so others tell of it: `dlrm serve`, and the description of the model by another
group.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_factory.host.process import process_state

__all__ = ["WaitingNotes", "waiting_groups"]


class WaitingNotes:
    """Notes of one group."""

    def __init__(self, model: str, address: str, port: int) -> None:
        self._waiting = _folder() / f".dlrm.waiting.{model}.{port}.json"
        self._hosts = _folder() / f".dlrm.hosts.{model}.{address}.json"
        self._port = port

    def addresses(self) -> dict[int, str]:
        """Address that each host number had in the group before."""
        found = _read(self._hosts)
        return {int(number): str(address) for number, address in found.items() if number.isdigit()}

    def keep_addresses(self, addresses: Mapping[int, str]) -> None:
        _write(self._hosts, {str(number): address for number, address in addresses.items()})

    def wait_for(self, missing: Mapping[int, str]) -> None:
        """``missing``: host numbers, and their addresses as far as they are known."""
        hosts = [{"host": number, "address": address or None} for number, address in missing.items()]
        _write(self._waiting, {"pid": os.getpid(), "port": self._port, "missing": hosts})

    def clear(self) -> None:
        """The group waits no more."""
        self._waiting.unlink(missing_ok=True)


def waiting_groups(model: str) -> list[dict[str, Any]]:
    """Groups of ``model`` on this host that wait for hosts: their ports, and the missing hosts."""
    found = [_read(path) for path in sorted(_folder().glob(f".dlrm.waiting.{model}.*.json"))]
    alive = [note for note in found if process_state(int(note.get("pid", 0))) not in "ZX"]
    return [{"port": note["port"], "missing": note["missing"]} for note in alive]


def _folder() -> Path:
    return Path(tempfile.gettempdir())


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, note: Mapping[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(note), encoding="utf-8")
    partial.replace(path)
