"""Files by which the workers of one model, the commands of `dlrm` and a worker's guard tell each other of answers.

TorchServe queues the requests of a worker that is scaled away again, even while that worker's answer to them is on
its way. A second worker would then answer them a second time, on a connection that has moved on: every later answer
there belongs to the request before. So each worker writes down the ids of the requests that it has, and that it is
about to answer them, before it does, and looks into the files of the others. When it is killed, its guard answers them.

One file a worker, mapped by whoever needs it::

    folder/                        one of one model version on one server
    └── <pid>.worker
        | magic | drain | holding | turns away | busy | tap |
          8       1       1         1            1      1
        | length of ids | time of last answer | ids, one a line | … | retired | parks | phase | by HTTP |
          4               8                     length of ids         1         1       1       1
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from enum import IntEnum
from hashlib import sha256
from pathlib import Path

__all__ = [
    "Phase",
    "WorkerFile",
    "WorkerFolder",
    "files_of_workers",
    "find_worker_file",
    "parking_path",
    "worker_folder",
]

_MAGIC = b"DLRMWRK2"
_DRAIN, _HOLDING, _TURNS_AWAY, _BUSY, _TAP, _LENGTH = 8, 9, 10, 11, 12, 13
_HEAD = struct.Struct("<Id")  # length of the ids, CLOCK_MONOTONIC in seconds
_LENGTH_OF_IDS, _TIME = struct.Struct("<I"), struct.Struct("<d")
_TIME_PLACE = _LENGTH + _LENGTH_OF_IDS.size
_IDS = _LENGTH + _HEAD.size
_FILE_BYTES = 1 << 20  # mostly a hole: only pages that are written take room
_RETIRED, _PARKS, _PHASE, _BY_HTTP = range(_FILE_BYTES - 4, _FILE_BYTES)
_MAX_IDS_BYTES = _RETIRED - _IDS
_ROOT = "dlrm-workers"
_SUFFIX = ".worker"
_PARKING = ".dlrm.parking"
# A request that is queued again comes back within seconds, or when somebody scales up from none.
_KEEP_DEAD_S = 600.0
# A worker's file is there seconds before its first request is, and a look costs system calls: not each batch has one.
_LOOK_EVERY_S = 0.25
# Up to so many ids, looking for each in the text of the others is faster than splitting it.
_FEW = 8
_NONE: frozenset[bytes] = frozenset()


class Phase(IntEnum):
    """State of a worker's batch.

    IDLE: none; the one before is answered. READING: some of its bytes are here. HELD: all of them, and its ids are in
    the file. ANSWERING: the worker is about to answer. SENDING: some of the answers may have left it, or all.
    """

    IDLE = 0
    READING = 1
    HELD = 2
    ANSWERING = 3
    SENDING = 4


class WorkerFile:
    """The mapped file of one worker, at ``path``. Whoever maps it sees what the others write at once.

    ``PLACES``: of the ids' length, the ids, the phase, `by_http` and `retired`, for who maps it without this class.
    """

    PLACES = (_LENGTH, _IDS, _PHASE, _BY_HTTP, _RETIRED)

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Map ``path``, made anew with ``create``. Raises OSError, or ValueError where it is no such file."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | ((os.O_CREAT | os.O_TRUNC) if create else 0)
        self.path = path
        handle = os.open(path, flags, 0o600)
        try:
            if create:
                os.truncate(handle, _FILE_BYTES)
            elif os.fstat(handle).st_size != _FILE_BYTES:
                raise ValueError(f"{path} is not the file of a worker")
            self._map = mmap.mmap(handle, _FILE_BYTES)
        finally:
            os.close(handle)
        if create:
            self._map[: len(_MAGIC)] = _MAGIC
            _HEAD.pack_into(self._map, _LENGTH, 0, time.monotonic())
        elif self._map[: len(_MAGIC)] != _MAGIC:
            self._map.close()
            raise ValueError(f"{path} is not the file of a worker")

    @property
    def drain(self) -> bool:
        """True from when the worker shall hold its next batch unanswered."""
        return self._map[_DRAIN] != 0

    @drain.setter
    def drain(self, value: bool) -> None:
        self._map[_DRAIN] = value

    @property
    def holding(self) -> bool:
        """True while the worker holds a batch, none of which it has answered or will answer."""
        return self._map[_HOLDING] != 0

    @holding.setter
    def holding(self, value: bool) -> None:
        self._map[_HOLDING] = value

    @property
    def turns_away(self) -> bool:
        """True from when the worker shall answer whatever comes with an error that may be tried again."""
        return self._map[_TURNS_AWAY] != 0

    @turns_away.setter
    def turns_away(self, value: bool) -> None:
        self._map[_TURNS_AWAY] = value

    @property
    def busy(self) -> bool:
        """True while the worker has a batch, until its answers are there."""
        return self._map[_BUSY] != 0

    @busy.setter
    def busy(self, value: bool) -> None:
        self._map[_BUSY] = value

    @property
    def tap(self) -> int:
        """Wish of a rollout: 0 for nothing, 1 to see answers of the worker, 2 to see bodies of requests too."""
        return self._map[_TAP]

    @tap.setter
    def tap(self, value: int) -> None:
        self._map[_TAP] = value

    @property
    def parks(self) -> bool:
        """True if the worker has a guard, which parks the connection of a worker that is retired."""
        return self._map[_PARKS] != 0

    @parks.setter
    def parks(self, value: bool) -> None:
        self._map[_PARKS] = value

    @property
    def retired(self) -> bool:
        """True once the worker's version is removed: no request comes any more, and its process is being ended."""
        return self._map[_RETIRED] != 0

    @retired.setter
    def retired(self, value: bool) -> None:
        self._map[_RETIRED] = value

    @property
    def phase(self) -> int:
        return self._map[_PHASE]

    @phase.setter
    def phase(self, value: Phase) -> None:
        self._map[_PHASE] = value

    @property
    def by_http(self) -> bool:
        """True if all requests of the batch are predictions by HTTP."""
        return self._map[_BY_HTTP] != 0

    def hold(self, ids: bytes, *, by_http: bool) -> None:
        """Write down the ids of a batch that is here and not answered yet, one a line, in place of the last batch's."""
        ids = ids[:_MAX_IDS_BYTES]
        # First, so that nobody takes them for answered.
        self._map[_PHASE] = Phase.HELD
        self._map[_IDS : _IDS + len(ids)] = ids
        _LENGTH_OF_IDS.pack_into(self._map, _LENGTH, len(ids))
        self._map[_BY_HTTP] = by_http

    def begin_answers(self, now: float) -> None:
        """Say that the batch is about to be answered. ``now``: `time.monotonic()`."""
        _TIME.pack_into(self._map, _TIME_PLACE, now)
        self._map[_PHASE] = Phase.ANSWERING

    def read_ids(self) -> bytes:
        """The last batch's ids, in a copy."""
        (length, _) = _HEAD.unpack_from(self._map, _LENGTH)
        return self._map[_IDS : _IDS + min(length, _MAX_IDS_BYTES)]

    def read_answered(self) -> bytes:
        """The ids of the last batch, in a copy, if it was answered or is about to be; none if it is held."""
        ids = self.read_ids()
        return b"" if self._map[_PHASE] == Phase.HELD else ids

    def silent_s(self) -> float:
        """Seconds since the last answer, or since the file was made if there was none."""
        (_, last) = _HEAD.unpack_from(self._map, _LENGTH)
        return time.monotonic() - last

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()


class WorkerFolder:
    """The files of all workers of one model version on one server, seen by one of them."""

    def __init__(self, folder: Path, pid: int) -> None:
        """Make the file of worker ``pid`` in ``folder``, and remove those of workers long dead."""
        self._folder, self._pid = folder, pid
        self._due = 0.0
        self._lines = b""
        self._others: dict[int, WorkerFile] = {}
        _remove_dead(folder)
        self.own = WorkerFile(folder / f"{pid}{_SUFFIX}", create=True)

    def hold(self, ids: Iterable[str], *, by_http: bool = True) -> None:
        """Write down the ``ids`` of a batch that is here."""
        self._lines = "\n".join(ids).encode()
        self.own.hold(self._lines, by_http=by_http)

    def begin_answers(self) -> frozenset[bytes]:
        """Write down that the batch is about to be answered; return those of its ids that another worker has answered.

        Written first and looked up second, so that of two workers at least one sees the other.
        """
        now = time.monotonic()
        self.own.begin_answers(now)
        others = [other.read_answered() for other in self._look(now)]
        if not others:
            return _NONE
        mine = self._lines.split(b"\n")
        if len(mine) <= _FEW:
            return frozenset(each for each in mine for answered in others if each in answered)
        asked = frozenset(mine)
        return frozenset().union(*(asked.intersection(answered.split(b"\n")) for answered in others))

    def _look(self, now: float) -> Iterable[WorkerFile]:
        if now >= self._due:
            self._due = now + _LOOK_EVERY_S
            # A folder that somebody has removed must not fail a batch.
            with contextlib.suppress(OSError):
                self._map_others()
        return self._others.values()

    def _map_others(self) -> None:
        """Map the files of new workers and unmap those that are gone."""
        found = dict(_worker_files(self._folder))
        found.pop(self._pid, None)
        for pid in self._others.keys() - found.keys():
            self._others.pop(pid).close()
        for pid in found.keys() - self._others.keys():
            with contextlib.suppress(OSError, ValueError):
                self._others[pid] = WorkerFile(found[pid])


def worker_folder(model_dir: str, temporary: Path | None = None) -> Path:
    """Make the folder for the workers of the model version that TorchServe unpacked into ``model_dir``.

    Each registration has a ``model_dir`` of its own. Raises OSError where the folder belongs to somebody else.
    """
    root = _root(temporary)
    folder = root / sha256(model_dir.encode()).hexdigest()[:16]
    for each in (root, folder):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
        found = each.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{each} can be written by others")
    return folder


def find_worker_file(pid: int, temporary: Path | None = None) -> WorkerFile | None:
    """Map the file of worker ``pid`` of a server whose temporary folder is ``temporary``; None if it has none."""
    for path in _root(temporary).glob(f"*/{pid}{_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError):
            return WorkerFile(path)
    return None


def parking_path(temporary: Path | None = None) -> Path:
    """Socket that takes connections of retired workers, of the server with this temporary folder or this process's."""
    return (temporary or Path(tempfile.gettempdir())) / _PARKING


def _root(temporary: Path | None) -> Path:
    return (temporary or Path(tempfile.gettempdir())) / f"{_ROOT}-{os.getuid()}"


def _worker_files(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        if path.suffix == _SUFFIX and path.stem.isdecimal():
            yield int(path.stem), path


def _remove_dead(folder: Path) -> None:
    for pid, path in _worker_files(folder):
        if _lives(pid):
            continue
        with contextlib.suppress(OSError, ValueError):
            file = WorkerFile(path)
            silent = file.silent_s()
            file.close()
            if silent > _KEEP_DEAD_S:
                path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def files_of_workers(suffix: str, temporary: Path | None = None) -> list[Path]:
    """Files that end in ``suffix`` of all workers of the server whose temporary folder is ``temporary``."""
    return sorted(_root(temporary).glob(f"*/*{suffix}"))
