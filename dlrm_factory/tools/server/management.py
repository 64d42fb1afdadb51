"""The management API of a running server: which models, how many workers, in what state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from dlrm_factory.errors import ServingError, near_matches
from dlrm_factory.tools.client.tokens import KeyFileAuth, is_loopback
from dlrm_factory.tools.server.rundir import RunDir, ServerState

# Java's errors when workers come and go while TorchServe looks at them. Every call here may be repeated.
_RACES = ("ConcurrentModificationException", "NullPointerException")
_RACE_PAUSES_S = (0.05, 0.1, 0.2, 0.4)

__all__ = ["ManagementClient", "ModelVersion", "Worker", "error_text", "http_client", "management_client"]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker; ``id`` stays when TorchServe restarts it, ``pid`` changes.

    ``pid`` is -1 or 0 until the worker has started and told it.
    """

    id: str
    pid: int
    ready: bool


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of a model.

    Args:
        model, version: as registered.
        location: the archive it was registered from: a name in the model store, a path or a URL.
        wanted: number of workers that TorchServe keeps running.
        workers: those that are there.
        waiting: requests in the queue, in no worker's hands yet.
    """

    model: str
    version: str
    location: str
    wanted: int
    workers: tuple[Worker, ...]
    waiting: int

    @property
    def ready(self) -> int:
        """Number of workers that have loaded the model."""
        return sum(worker.ready for worker in self.workers)


class ManagementClient:
    """Calls the management API at ``url``. Raises ServingError for every answer that is not a success."""

    def __init__(self, url: str, auth: httpx.Auth | None = None, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = http_client(self.url, auth, timeout)

    def __enter__(self) -> ManagementClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def answers(self) -> bool:
        """True if anything answers at the address."""
        try:
            self._http.get("/models", params={"limit": 1})
        except (httpx.TransportError, ServingError):
            return False
        return True

    def models(self) -> list[str]:
        """The names of the registered models."""
        return [str(each["modelName"]) for each in self._call("GET", "/models")["models"]]

    def describe(self, model: str, version: str | None = None) -> ModelVersion:
        """The ``version`` of ``model``; its default version if None."""
        return _version(self._call("GET", _path(model, version), model=model)[0])

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of ``model``."""
        return [_version(each) for each in self._call("GET", _path(model, "all"), model=model)]

    def workers(self, model: str, version: str | None = None) -> list[Worker]:
        """The workers of a version of ``model``."""
        return list(self.describe(model, version).workers)

    def wanted_workers(self, model: str, version: str | None = None) -> int:
        """Number of workers that TorchServe keeps running for a version of ``model``."""
        return self.describe(model, version).wanted

    def archive(self, model: str, version: str | None = None) -> str:
        """Archive that ``model`` was registered from: a name in the model store, a path or a URL."""
        return self.describe(model, version).location

    def scale(self, model: str, workers: int, version: str | None = None) -> None:
        """Asks for ``workers`` workers and returns at once: TorchServe starts or ends them meanwhile."""
        # A synchronous call would block an event loop that predictions need.
        params = {"min_worker": workers, "max_worker": workers, "synchronous": "false"}
        self._call("PUT", _path(model, version), params=params)

    def close_queue(self, model: str, version: str, workers: int) -> None:
        """Let the front end answer new requests to the version with 503, while its ``workers`` do what they have.

        With no worker wanted TorchServe forgets those that are there, and so takes no request; with as many allowed
        it ends none. Nothing but the end of the server ends them then.
        """
        params = {"min_worker": 0, "max_worker": workers, "synchronous": "false"}
        self._call("PUT", _path(model, version), params=params)

    def register(self, model: str, location: str) -> None:
        """Register another version of ``model`` from ``location``, a folder; its workers start meanwhile."""
        # A synchronous call would block an event loop that predictions need.
        params = {"url": location, "model_name": model, "initial_workers": 0, "synchronous": "false"}
        self._call("POST", "/models", params=params)

    def unregister(self, model: str, version: str) -> None:
        """End the workers of a version and forget it. Requests in its queue are never answered."""
        self._call("DELETE", _path(model, version), model=model)

    def set_default(self, model: str, version: str) -> None:
        """Let ``version`` answer the requests that name no version."""
        self._call("PUT", f"{_path(model, version)}/set-default", model=model)

    def ask_worker(self, model: str, timeout: float, version: str | None = None) -> bool:
        """Return True if a worker of ``model`` answers within ``timeout`` seconds; the question is its description.

        An error is an answer too: a handler of another kind may have no description.
        """
        try:
            found = self._http.get(_path(model, version), params={"customized": "true"}, timeout=timeout)
        except httpx.TransportError:
            return False
        # The front end's own answer where no worker takes requests, or too many wait.
        return not (found.status_code == 503 and "has no worker to serve" in found.text)

    def _call(self, method: str, path: str, params: dict[str, Any] | None = None, model: str = "") -> Any:
        try:
            response = self._http.request(method, path, params=params)
            for pause in _RACE_PAUSES_S:
                if not _lost_a_race(response):
                    break
                time.sleep(pause)
                response = self._http.request(method, path, params=params)
        except httpx.TimeoutException as error:
            raise ServingError(f"the server at {self.url} is too busy to answer; try again") from error
        except httpx.TransportError as error:
            raise ServingError(
                f"no server answers at {self.url} ({error or type(error).__name__})"
            ) from error
        if response.status_code == 404 and model:
            known = self.models()
            if model in known:  # but not that version
                raise ServingError(error_text(response))
            listed = f"it serves {', '.join(known)}" if known else "it serves none"
            raise ServingError(f'the server has no model "{model}"{near_matches(model, known)} ({listed})')
        if not response.is_success:
            raise ServingError(error_text(response))
        return response.json()


def management_client(run_dir: RunDir, state: ServerState, timeout: float = 30.0) -> ManagementClient:
    """A client of the management API of ``state``, with its tokens."""
    auth = KeyFileAuth(run_dir.key_file, "management", state.management) if state.token_auth else None
    return ManagementClient(state.management, auth, timeout)


def _path(model: str, version: str | None) -> str:
    return "/".join(["/models", *(quote(part, safe="") for part in (model, version) if part is not None)])


def _version(found: dict[str, Any]) -> ModelVersion:
    return ModelVersion(
        model=str(found.get("modelName", "")),
        version=str(found.get("modelVersion", "")),
        location=str(found.get("modelUrl", "")),
        wanted=int(found.get("minWorkers", 0)),
        workers=tuple(
            Worker(id=str(each["id"]), pid=int(each["pid"]), ready=each["status"] == "READY")
            for each in found.get("workers", ())
        ),
        waiting=int((found.get("jobQueueStatus") or {}).get("pendingRequests", 0)),
    )


def _lost_a_race(response: httpx.Response) -> bool:
    """True for the errors of TorchServe's lists of workers and requests, which threads change at the same time."""
    return response.status_code == 500 and any(name in response.text for name in _RACES)


def http_client(url: str, auth: httpx.Auth | None, timeout: float) -> httpx.Client:
    """A client for ``url``; a proxy of the environment is not asked for what is on this machine."""
    return httpx.Client(base_url=url, auth=auth, timeout=timeout, trust_env=not is_loopback(url))


def error_text(response: httpx.Response) -> str:
    """One line for an answer of TorchServe's (or the handler's) that is not a success."""
    try:
        found = response.json()
        kind, message = found.get("type", ""), str(found.get("message", "")).strip()
        where = f" at {found['path']}" if found.get("path") else ""
    except (ValueError, AttributeError):
        kind, message, where = "", response.text.strip()[:500], ""
    hint = _hint(response.status_code, kind)
    return f"HTTP {response.status_code}{' ' + kind if kind else ''}{where}: {message or 'no message'}{hint}"


def _hint(status: int, kind: str) -> str:
    if kind == "InvalidKeyException":
        return " (give the server's --run-dir, or its token with --token or DLRM_TOKEN)"
    if status == 503:
        # TorchServe says "no worker" for a full queue too.
        return " (no worker is ready, or the queue is full: see `dlrm scale`)"
    return ""
