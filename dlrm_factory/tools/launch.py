"""Several processes on this host that work as ranks: what `torchrun` does, from within Python."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dlrm_factory import errors
from dlrm_factory.errors import DLRMError
from dlrm_factory.host.process import RANK_STORE_VARIABLE
from dlrm_factory.tools.quiet import quiet_libraries

__all__ = ["launch"]

_Result = TypeVar("_Result")

_NOT_SHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
# Each sign of life is appended to the file, and nobody reads it.
_NEVER_S = 10**6
# Imported once, in a process that each rank is forked from.
_PRELOADED = ["dlrm_factory.factory", "dlrm_factory.tools.launch"]
# What torch says of a rank's place, to the rank alone.
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


def launch(function: Callable[..., _Result], *arguments: Any, processes: int) -> _Result:
    """Call ``function(*arguments)`` in ``processes`` new processes, which torch.distributed finds as ranks 0, 1, ….

    ``function`` is a module's, and the arguments and the result can be sent between processes. If one rank fails, the
    others are ended. An interrupt ends them all.

    Returns:
        Rank 0's result.

    Raises:
        DLRMError: with the message of the first one that a rank raised, or what else ended a rank.
    """
    _quiet_elastic()
    multiprocessing.set_forkserver_preload(_PRELOADED)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PLACE)}
    with tempfile.TemporaryDirectory(prefix="dlrm-ranks-") as folder:
        environment[RANK_STORE_VARIABLE] = str(Path(folder) / "ranks")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            # By files: what torch opens otherwise listens on all interfaces.
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "rendezvous"),
            rdzv_configs={"store_type": "file", "keep_alive_interval": _NEVER_S},
            max_restarts=0,
            monitor_interval=0.1,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with _agents_store_is_not_shared():
                results = elastic_launch(config, _rank)(environment, function, *arguments)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            message = _first_error(Path(folder)) or f"rank {rank} of {processes} ended: {failure.message}"
            raise DLRMError(message) from None
        except SignalException:
            raise KeyboardInterrupt from None
    result: _Result = results[0]
    return result


def _quiet_elastic() -> None:
    """Silence torch.distributed.elastic, which reports every failure at length: `launch` raises the first one.

    Each of its loggers has a level of its own.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _agents_store_is_not_shared() -> Iterator[None]:
    """Keep torchrun's agent, which lives in this process, from opening a store of its own for the ranks."""
    before = os.environ.get(_NOT_SHARED)
    os.environ[_NOT_SHARED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NOT_SHARED]
        else:
            os.environ[_NOT_SHARED] = before


def _rank(
    environment: Mapping[str, str], function: Callable[..., _Result], *arguments: Any
) -> _Result | None:
    """Run ``function`` as one rank; rank 0 returns its result. ``environment``: of the process that called `launch`."""
    os.environ.update(environment)
    # An interrupt reaches the ranks too; they need not say so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_libraries()
    try:
        result = function(*arguments)
    except Exception as error:
        # What is raised from here torch also pickles into the temporary folder, where nothing removes it.
        get_error_handler().record_exception(error)
        raise SystemExit(1) from None
    leads = not dist.is_initialized() or dist.get_rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return result if leads else None


def _first_error(folder: Path) -> str | None:
    """The first error that a rank wrote down: one of ours if there is any, else with its traceback."""
    found = [json.loads(path.read_text())["message"] for path in folder.rglob("error.json")]
    found.sort(key=lambda error: (not _is_ours(error), int(error["extraInfo"]["timestamp"])))
    if not found:
        return None
    name, _, message = str(found[0]["message"]).partition(": ")
    if _is_ours(found[0]):
        return message
    return f"a rank failed: {name}: {message}\n{found[0]['extraInfo']['py_callstack']}"


def _is_ours(error: dict[str, Any]) -> bool:
    kind = getattr(errors, str(error["message"]).partition(": ")[0], None)
    return isinstance(kind, type) and issubclass(kind, DLRMError)
