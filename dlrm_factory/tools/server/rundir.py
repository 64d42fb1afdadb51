"""The run directory: all that one running server needs and leaves, apart from every other server.

::

    .dlrm/                   mode 700, for it holds tokens
    ├── .dlrm-run-dir        says that this folder is ours to write and to clean
    ├── autoscale.json       models whose workers are scaled by queue time
    ├── config.properties    the settings in force
    ├── draining             while the server is being stopped
    ├── group.secret         of groups with other hosts; stays when the server ends
    ├── key_file.json        tokens; TorchServe writes it where it starts
    ├── rollout.json         canary, and versions that are kept
    ├── rollouts.jsonl       history of rollouts; stays when the server ends
    ├── server.json          pid and addresses
    ├── logs/                model_log.log, ts_log.log, console.log, …
    └── tmp/                 unpacked archives, worker sockets, TorchServe's pid file
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dlrm_factory.errors import ServingError

__all__ = ["RunDir", "ServerState"]

_MARKER = ".dlrm-run-dir"
# A Unix socket's path holds at most 107 bytes; TorchServe adds "/.ts.sock.65535", torchrun ranks a few more.
_MAX_TMP = 85
_MAX_PARENT = _MAX_TMP - len("/dlrm-12345678/tmp")


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """State of a started server.

    Args:
        pid: of the Java process.
        started: when it started, in seconds since the epoch: a pid alone may be used again.
        inference, management, metrics: base URLs, reachable from this machine.
        grpc_inference, grpc_management: HOST:PORT of the same by gRPC.
        token_auth: whether requests need a token.
        models: names of the models it was started with.
        model_store: folder it loads archives from.
        tmp: its temporary folder.
        ready: base URL that readiness and liveness are listened for at; empty if they are not served.
        drain_seconds: to answer what has come, when it is stopped.
        drain_delay: seconds for which it is not ready, and answers, before.
    """

    pid: int
    started: float
    inference: str
    management: str
    metrics: str
    grpc_inference: str
    grpc_management: str
    token_auth: bool
    models: tuple[str, ...]
    model_store: str
    tmp: str
    ready: str = ""
    drain_seconds: float = 30.0
    drain_delay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunDir:
    """A run directory at ``root``, an absolute path."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> RunDir:
        return cls(root=path.expanduser().resolve())

    @property
    def config_file(self) -> Path:
        return self.root / "config.properties"

    @property
    def key_file(self) -> Path:
        return self.root / "key_file.json"

    @property
    def secret_file(self) -> Path:
        return self.root / "group.secret"

    @property
    def state_file(self) -> Path:
        return self.root / "server.json"

    @property
    def draining_file(self) -> Path:
        """File that is there while the server is being stopped."""
        return self.root / "draining"

    @property
    def autoscale_file(self) -> Path:
        return self.root / "autoscale.json"

    @property
    def rollout_file(self) -> Path:
        return self.root / "rollout.json"

    @property
    def rollout_history(self) -> Path:
        return self.root / "rollouts.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def staged(self) -> Path:
        """Folder of models that are served with another number of ranks than their archives say."""
        return self.root / "tmp" / "ranks"

    @property
    def model_log(self) -> Path:
        return self.logs / "model_log.log"

    @property
    def ts_log(self) -> Path:
        return self.logs / "ts_log.log"

    @property
    def sidecar_log(self) -> Path:
        return self.logs / "sidecar.log"

    @property
    def console_log(self) -> Path:
        return self.logs / "console.log"

    def prepare(self) -> None:
        """Makes the folder, or takes over one of ours. Raises ServingError for a folder of others."""
        if self.root.exists() and not self.root.is_dir():
            raise ServingError(f"run directory {self.root} is a file; give a folder with --run-dir")
        # The secret comes first where it is copied to all hosts before the server is started.
        if self.root.is_dir() and not self.is_ours() and set(self.root.iterdir()) - {self.secret_file}:
            raise ServingError(
                f"run directory {self.root} holds files that are not a server's; give an empty or new folder "
                "with --run-dir"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
            self.logs.mkdir(exist_ok=True)
            (self.root / "tmp").mkdir(exist_ok=True)
            (self.root / _MARKER).write_text("Run directory of `dlrm serve`.\n", encoding="utf-8")
            # Tokens must not reach a repository by a broad `git add`.
            (self.root / ".gitignore").write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise ServingError(f"run directory {self.root} cannot be written: {error.strerror}") from error

    def is_ours(self) -> bool:
        return (self.root / _MARKER).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second start at the same time. ServingError if it is held or cannot be."""
        try:
            lock = FileLock(self.root / ".lock", timeout=0).acquire()
        except Timeout:
            raise ServingError(f"another `dlrm serve` is starting in {self.root}; wait for it") from None
        except OSError as error:
            raise ServingError(f"run directory {self.root} cannot be locked: {error.strerror}") from error
        with lock:
            yield

    def make_tmp(self) -> Path:
        """The server's temporary folder: ``tmp/``, or a short link to it where sockets would not fit."""
        tmp = self.root / "tmp"
        if len(str(tmp).encode()) <= _MAX_TMP:
            return tmp
        # TMPDIR may be as deep.
        parent = next((each for each in (tempfile.gettempdir(), "/tmp") if len(each) <= _MAX_PARENT), None)
        link = Path(tempfile.mkdtemp(prefix="dlrm-", dir=parent)) / "tmp"
        link.symlink_to(tmp, target_is_directory=True)
        return link

    def write_state(self, state: ServerState) -> None:
        text = json.dumps(dataclasses.asdict(state), indent=2) + "\n"
        # Renamed into place, so that nobody reads half of it.
        partial = self.state_file.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.state_file)

    def read_state(self) -> ServerState | None:
        """State written last, also of a server long dead; None when there is none or it is unreadable."""
        try:
            found: dict[str, Any] = json.loads(self.state_file.read_text(encoding="utf-8"))
            return ServerState(**{**found, "models": tuple(found["models"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self, state: ServerState | None = None) -> None:
        """Removes what a dead server left: state, tokens, unpacked archives. Logs stay."""
        if not self.is_ours():
            return
        state = state or self.read_state()
        if state is not None and Path(state.tmp).is_symlink():
            shutil.rmtree(Path(state.tmp).parent, ignore_errors=True)
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        for file in (
            self.key_file,
            self.state_file,
            self.draining_file,
            self.rollout_file,
            self.autoscale_file,
        ):
            file.unlink(missing_ok=True)
