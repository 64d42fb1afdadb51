"""Workers' files of a server, without a server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.monitoring import NOW, counted_service, reference_of, rows

from dlrm_factory.host.worker_file import worker_folder
from dlrm_factory.requests.request import Request


@pytest.fixture(scope="session")
def reference() -> Any:
    return reference_of(4000)


@pytest.fixture
def work(tmp_path: Path, reference: Any) -> Callable[..., Path]:
    """Lets a worker of a version answer requests; gives the temporary folder of its server."""

    def answer(bodies: list[Any], *, version: str = "1.0", pid: int | None = None, **facts: Any) -> Path:
        model_dir = tmp_path / f"archive-{version}"
        model_dir.mkdir(exist_ok=True)
        (model_dir / "tables.bin").write_bytes(b"\0" * 4096)
        facts = {"goldens": 16, "archive_created": NOW - 3600, **facts}
        files = worker_folder(str(model_dir), tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            if pid is not None:
                patch.setattr(os, "getpid", lambda: pid)
            service, observer = counted_service(
                files, reference=reference, model_dir=str(model_dir), version=version, **facts
            )
        for body in bodies:
            request = body if isinstance(body, Request) else Request(json.dumps(body).encode())
            service.handle([request])
        observer.stop()
        return tmp_path

    return answer


@pytest.fixture
def bodies() -> list[Any]:
    return [{"instances": [row]} for row in rows(20, 1)]
