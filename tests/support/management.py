"""TorchServe's management API in memory, as `ManagementClient` shows it."""

from __future__ import annotations

from dataclasses import replace

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import ModelVersion
from dlrm_factory.tools.server.management import Worker

__all__ = ["InMemoryManagement", "version_of"]


def version_of(
    version: str,
    *,
    pids: tuple[int, ...] = (),
    ready: bool = True,
    wanted: int = 1,
    location: str = "dlrm.mar",
) -> ModelVersion:
    """A ``version`` of "dlrm" whose workers have ``pids``."""
    workers = tuple(Worker(id=str(9000 + i), pid=pid, ready=ready) for i, pid in enumerate(pids))
    return ModelVersion(
        model="dlrm", version=version, location=location, wanted=wanted, workers=workers, waiting=0
    )


class InMemoryManagement:
    """Versions of "dlrm", the first of them the default; ``calls`` has what was changed."""

    def __init__(self, *versions: ModelVersion) -> None:
        self.found = {each.version: each for each in versions}
        self.default = versions[0].version if versions else ""
        self.calls: list[tuple[object, ...]] = []
        self.waiting: list[int] = []
        self.error: ServingError | None = None

    def models(self) -> list[str]:
        if self.error:
            raise self.error
        return ["dlrm"] if self.found else []

    def versions(self, model: str) -> list[ModelVersion]:
        return list(self.found.values())

    def describe(self, model: str, version: str | None = None) -> ModelVersion:
        waiting = self.waiting.pop(0) if self.waiting else 0
        return replace(self.found[version or self.default], waiting=waiting)

    def workers(self, model: str, version: str | None = None) -> list[Worker]:
        return list(self.describe(model, version).workers)

    def close_queue(self, model: str, version: str, workers: int) -> None:
        self.calls.append(("close", version, workers))

    def scale(self, model: str, workers: int, version: str | None = None) -> None:
        self.calls.append(("scale", version, workers))

    def set_default(self, model: str, version: str) -> None:
        self.calls.append(("default", version))
        self.default = version

    def unregister(self, model: str, version: str) -> None:
        self.calls.append(("unregister", version))
        del self.found[version]
