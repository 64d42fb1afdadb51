"""The entry that TorchServe loads. The only module of the project that imports TorchServe.

TorchServe takes the one class that this file defines, calls `initialize` once and `handle` for every batch.
torch-model-archiver copies it to the archive's root, next to the packages ``dlrm_factory`` and ``handler``.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Sequence
from http import HTTPStatus
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

_ROOT = Path(__file__).resolve().parent
_OURS = ("dlrm_factory", "handler")


def _find_own(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
    """A module of ours, from the archive or not at all. RuntimeError if the archive lacks it.

    An ImportError would make TorchServe look for a handler of its own, and hide what is missing.
    """
    if name.partition(".")[0] not in _OURS:
        return None
    found = PathFinder.find_spec(name, [str(_ROOT)] if path is None else path)
    if found is None or found.origin is None:
        raise RuntimeError(
            f"the archive in {_ROOT} lacks its module {name}; make the archive again from its checkpoint"
        )
    return found


def _use_own_code() -> None:
    """Let nothing of ours be imported but the archive's: this machine may have another version installed."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in _OURS and not (file and Path(file).resolve().is_relative_to(_ROOT)):
            raise RuntimeError(f"{name} of {file} was imported before the archive in {_ROOT}; it has its own")
    sys.path.insert(0, str(_ROOT))
    # A namespace, for TorchServe wants one class in this file.
    sys.meta_path.insert(0, SimpleNamespace(find_spec=_find_own))


if __name__ != "handler.dlrm_handler":  # that is the name in a checkout; an archive has this file at its root
    _use_own_code()
    # Nearly all that is imported and loaded stays: collections meanwhile look through it again and again.
    gc.disable()

import numpy as np  # noqa: E402

from dlrm_factory.batch import FeatureBatch  # noqa: E402
from dlrm_factory.config import DLRMDeclaration  # noqa: E402
from dlrm_factory.config.trust import trust_code  # noqa: E402
from dlrm_factory.errors import DLRMError  # noqa: E402
from dlrm_factory.goldens import golden_batch, read_goldens  # noqa: E402
from dlrm_factory.requests.answers import (  # noqa: E402
    answer_group_lost,
    answer_scaled_away,
    answer_worker_lost,
)
from dlrm_factory.requests.replay import replay  # noqa: E402
from dlrm_factory.requests.service import DLRMService  # noqa: E402
from dlrm_factory.scorer import EAGER_TOLERANCE, Scorer  # noqa: E402
from handler.calls import answer_calls, are_predictions_by_http  # noqa: E402
from handler.connection import find_connection  # noqa: E402
from handler.draining import Draining  # noqa: E402
from handler.group import WorkerGroup, hosts_of, in_group  # noqa: E402
from handler.guard import start_guard  # noqa: E402
from handler.metrics import count_metrics  # noqa: E402
from handler.request import REQUEST_ID, request_id_of  # noqa: E402
from handler.tap import Tap  # noqa: E402
from handler.worker import freeze_loaded, prepare_worker, share_cores  # noqa: E402

if TYPE_CHECKING:
    from ts.context import Context

logger = logging.getLogger(__name__)

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class DLRMHandler:
    """Scores TorchServe's batches with the model in the archive."""

    def initialize(self, context: Context) -> None:
        """Prepare, load, prove, freeze. Raises `DLRMError` after one log line if the archive is broken.

        A worker that cannot reproduce the archive's golden requests raises, so it never reports ready. Of a group of
        ranks the first one proves and answers, and the others follow it: `handle` is for the first alone.
        """
        started = time.perf_counter()
        prepare_worker(str(context.system_properties.get("server_version")), context.metrics)
        trust_code(None)  # the archive that is served, as this handler is its code
        folder = Path(context.system_properties["model_dir"])
        try:
            hosts = hosts_of(context.model_yaml_config)
            self._group = (
                WorkerGroup.join(folder, model=context.model_name, hosts=hosts) if in_group(hosts) else None
            )
            if self._group is not None and self._group.follows:
                self._group.follow()
            else:
                self._service = _load(folder, context, self._group)
                self._draining = Draining.for_model(str(context.system_properties["model_dir"]))
                self._guard = _start_guard(self._draining, self._group)
                self._tap = Tap(self._draining.file)
                if self._group is not None:
                    self._group.loaded()
        except DLRMError as error:
            logger.error("The archive in %s cannot be served: %s", folder, error)
            raise
        freeze_loaded()
        logger.info("Loaded the model in %s in %.1f s", folder, time.perf_counter() - started)

    def handle(self, data: list[dict[str, Any]], context: Context) -> list[bytes]:
        """One body a request, its status in ``context``: an exception would fail the whole batch."""
        headers = [context.get_all_request_header(i) for i in range(len(data))]
        self._draining.begin_batch(context.request_ids, by_http=are_predictions_by_http(headers))
        self._draining.hold()
        started = time.perf_counter()
        answers = answer_calls(self._draining.service(self._service), data, headers, context)
        self._tap.offer(data, headers, answers, started)
        again = self._draining.begin_answers(context.request_ids)
        if self._group is not None:
            answers = self._group.last_answers(answers, headers, context.request_ids)
        for i, answer in enumerate(answers):
            if i in again and "ts_stream_next" not in context.get_response_headers(i):
                # By HTTP: an answer by gRPC reaches its own call or none.
                answers[i] = answer = answer_scaled_away()
            context.set_response_content_type(i, answer.content_type)
            for name, value in answer.headers.items():
                context.set_response_header(i, name, value)
            context.set_response_status(answer.status, _PHRASES[answer.status], i)
            request_id = request_id_of(headers[i])
            if request_id is not None:
                context.set_response_header(i, REQUEST_ID, request_id)
        return [answer.body for answer in answers]


def _start_guard(draining: Draining, group: WorkerGroup | None) -> Popen[bytes] | None:
    others, lost = ([], answer_worker_lost()) if group is None else (group.connections, answer_group_lost())
    return start_guard(draining.file, [find_connection(), *others], lost)


def _load(folder: Path, context: Context, group: WorkerGroup | None) -> DLRMService:
    started = time.perf_counter()
    scorer = Scorer.load(folder) if group is None else group.lead()
    serving = scorer.declaration.serving
    share_cores(serving, ranks=1 if group is None else group.ranks.size)
    service = DLRMService(
        scorer,
        model_name=context.model_name,
        model_version=((context.manifest or {}).get("model") or {}).get("modelVersion"),
        plan=scorer.built.plan.to_dict(),
        vocabularies=scorer.vocabularies,
        waiting_groups=None if group is None else group.waiting_groups,
    )
    goldens, difference = read_goldens(folder), 0.0
    if goldens is None:
        logger.warning("The archive in %s has no golden requests, so its scores are not proven here", folder)
        scorer.logits(_warm_up_batch(scorer.declaration))
    else:
        difference = replay(service, goldens, EAGER_TOLERANCE)
    if serving.compile != "off":
        # Compiled code must give the golden scores too, before it is used.
        probes = [] if goldens is None else [golden_batch(goldens, scorer.declaration, scorer.vocabularies)]
        scorer.compile(folder, background=serving.compile == "background", probes=probes)
    count_metrics(
        service,
        scorer.declaration,
        folder,
        engine=lambda: scorer.engine,
        manifest=context.manifest,
        goldens=0 if goldens is None else len(goldens),
        golden_difference=difference,
        load_seconds=time.perf_counter() - started,
    )
    return service


def _warm_up_batch(declaration: DLRMDeclaration) -> FeatureBatch:
    """Samples as many as TorchServe batches requests: dense 0, one id 0 in every bag."""
    size, features = declaration.serving.batch_requests, len(declaration.sparse_features)
    return FeatureBatch(
        dense=np.zeros((size, len(declaration.dense_features)), dtype=np.float32),
        lengths=np.ones((features, size), dtype=np.int32),
        values=np.zeros(features * size, dtype=np.int64),
    )
