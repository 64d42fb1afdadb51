"""FastAPI servers in one process each: uvicorn with httptools and uvloop, no access log.

The module starts itself as ``python -m compare.fastapi_server SEALED KIND DESCRIPTOR``: the listening socket is the
parent's.
"""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import httpx

from compare.processes import child_environment
from dlrm_factory.errors import ServingError

__all__ = ["KINDS", "FastAPIKind", "missing_packages", "running_fastapi"]

FastAPIKind = Literal["fastapi_threads", "fastapi_batcher"]
KINDS: tuple[FastAPIKind, ...] = get_args(FastAPIKind)

_PACKAGES = ("fastapi", "uvicorn", "httptools", "uvloop")
_START_S = 180.0


def missing_packages() -> list[str]:
    """Packages of the extra ``compare`` that are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


@contextmanager
def running_fastapi(kind: FastAPIKind, sealed: Path, log: Path) -> Iterator[str]:
    """URL of a server of the sealed weights, ready, until the block ends. ServingError if it does not start."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening, log.open("wb") as output:
        descriptor = listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", __name__, str(sealed), kind, str(descriptor)],
            env={**child_environment(), "OMP_NUM_THREADS": "1"},
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """The socket listens from the start, so a request waits until the server takes it."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/openapi.json", timeout=2.0, trust_env=False).raise_for_status()
        except httpx.TransportError:
            continue
        return
    lines = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
    raise ServingError(f"the FastAPI server did not start: {lines[-1]}")


def _serve(sealed: Path, kind: str, descriptor: int) -> None:
    import uvicorn

    from compare.eager import EagerModel
    from compare.fastapi_app import batcher_app, thread_pool_app

    make_app = {"fastapi_threads": thread_pool_app, "fastapi_batcher": batcher_app}[kind]
    config = uvicorn.Config(
        make_app(EagerModel(sealed)), http="httptools", loop="uvloop", log_level="warning", access_log=False
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
