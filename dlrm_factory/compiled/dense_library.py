"""Compiled library of the dense parts: cached on this host, built in a process of its own, judged once.

All workers of a model on this host score with the compiled code, or all of them eagerly. Compiled and eager scores
differ in their last digits, so workers that decided each for itself would give a client one score now and another one
then. The first worker decides and writes the verdict down; every other one, and every one that is started again,
follows it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import xxhash
from filelock import FileLock, Timeout

from dlrm_factory.batch import Embeddings
from dlrm_factory.compiled.build import (
    build_in_subprocess,
    compiler,
    few_samples_library,
    is_built,
)
from dlrm_factory.compiled.dense_net import Precision, cpu_capability
from dlrm_factory.config.declaration import ARCHITECTURE_FIELDS, DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.host.cache import cache_folder
from dlrm_factory.weights.seal import DENSE_FILE, read_seal

__all__ = [
    "FEW_SAMPLES",
    "CompiledDense",
    "Verdict",
    "cache_folder",
    "compiled_dense",
    "eager_reason",
    "library_path",
    "one_at_a_time",
    "read_verdict",
    "write_verdict",
]

_LAYOUT = 10  # raised when DenseNet or how it is compiled changes

logger = logging.getLogger(__name__)
CompiledDense = Callable[[torch.Tensor, Embeddings], torch.Tensor]
TryOut = Callable[[CompiledDense], str | None]
Runner = Callable[[list[torch.Tensor]], list[torch.Tensor]]
# Up to so many samples, code of its own is faster than a library's products. bf16: 0.05 ms in place of 0.2 ms for one
# sample, the same for 16. fp32: 0.08 ms in place of 0.10 ms for one, the same for 8.
FEW_SAMPLES: dict[Precision, int] = {"bf16": 16, "fp32": 8}
# Without torch's public wrapper, which reads how to flatten the arguments from JSON at every call: 0.1 ms. It is
# private, so another release of torch may have none.
_RUNNER: Any = getattr(getattr(torch._C, "_aoti", None), "AOTIModelContainerRunnerCpu", None)
# What a worker does after it has compiled, or given up, before TorchServe ends it for being late.
_REST_OF_START_S = 60


def library_name(declaration: DLRMDeclaration, dense_weights: bytes, precision: Precision) -> str:
    """A name that changes with everything a library depends on: weights, shapes, versions, CPU, threads.

    ``dense_weights``: the file with the dense weights, whole.
    """
    shape = repr(
        (
            _LAYOUT,
            [getattr(declaration, field) for field in ARCHITECTURE_FIELDS],
            declaration.outputs,
            declaration.dense_names,
            [(feature.name, feature.table, feature.max_length) for feature in declaration.sparse_features],
            [(table.name, table.embedding_dim, table.pooling == "none") for table in declaration.tables],
            precision,
            torch.__version__,
            cpu_capability(),
            torch.get_num_threads(),
        )
    )
    digest = xxhash.xxh3_128(dense_weights)
    digest.update(shape.encode())
    return f"dense-{digest.hexdigest()}.so"


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Engine that scores, and for ``eager`` the reason, in the words of a log line."""

    engine: Literal["compiled", "eager"]
    reason: str = ""


def verdict_path(library: Path, folder: Path) -> Path:
    """Return the file that holds the verdict on ``library`` with the sealed weights in ``folder``, or would.

    The library's name stands for dense weights, shapes, versions, CPU and threads; the seal adds the tables and the
    golden requests, which the code was tried out with. WeightsError if there is no seal.
    """
    files = sorted(read_seal(folder).files.items())
    digest = xxhash.xxh3_128(library.name.encode())
    digest.update(msgspec.json.encode(files))
    return library.with_name(f"verdict-{digest.hexdigest()}.json")


def read_verdict(path: Path) -> Verdict | None:
    """The verdict in ``path``; None if there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write ``verdict`` whole or not at all. OSError if it cannot be written."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        partial.write_bytes(msgspec.json.encode(verdict) + b"\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the lock file beside ``path``: one process of the host is in the block, and the others wait.

    OSError if it cannot be locked.
    """
    # Only locks that end with their process: a soft one, left behind by a killed worker of another container, would
    # make this one wait for ever.
    lock = FileLock(path.with_name(f"{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("Waiting for another process, which compiles the dense parts (pid %d)", os.getpid())
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


def eager_reason(folder: Path, declaration: DLRMDeclaration, precision: Precision) -> str | None:
    """Reason, decided once for this host, to score the sealed weights in ``folder`` eagerly; None if there is none."""
    library = library_path(folder, declaration, precision)
    verdict = None if library is None else read_verdict(verdict_path(library, folder))
    return None if verdict is None or verdict.engine == "compiled" else verdict.reason


def library_path(folder: Path, declaration: DLRMDeclaration, precision: Precision) -> Path | None:
    """Path, on this host, of the library for the sealed weights in ``folder``, built or not; None without a cache."""
    cache = cache_folder()
    if cache is None:
        return None
    return cache / library_name(declaration, (folder / DENSE_FILE).read_bytes(), precision)


def compiled_dense(
    folder: Path, declaration: DLRMDeclaration, precision: Precision, *, try_out: TryOut, build: bool = True
) -> CompiledDense | None:
    """The compiled dense parts of the sealed weights in ``folder``: (dense, embeddings) → float32 [B, C].

    One process of the host builds it, tries it out and writes the verdict down, while the others wait; then all
    follow it. None, after one log line, if the verdict is to score eagerly.

    Args:
        try_out: gives the reason why code must not be used, None if it may.
        build: False takes only what another process has built before.

    WeightsError if the verdict is to use the compiled code, as other workers do, and it cannot be had any more.
    """
    if _RUNNER is None:
        logger.warning(
            "torch %s has no torch._C._aoti.AOTIModelContainerRunnerCpu, which runs compiled code; scoring eagerly",
            torch.__version__,
        )
        return None
    library = library_path(folder, declaration, precision)
    if library is None:
        logger.warning("No folder to keep compiled code in; scoring eagerly. Set DLRM_CACHE_DIR to one.")
        return None
    sources = _Sources(folder, library, precision, _compile_seconds(declaration))
    path = verdict_path(library, folder)
    if (verdict := read_verdict(path)) is None:
        if not build and not is_built(library):
            return None
        with one_at_a_time(path):
            if (verdict := read_verdict(path)) is None:
                return _decide(sources, path, try_out)
    return _follow(verdict, sources, path, try_out, build)


@dataclass(frozen=True)
class _Sources:
    folder: Path
    library: Path
    precision: Precision
    seconds: float  # the most that compiling may take


def _decide(sources: _Sources, path: Path, try_out: TryOut) -> CompiledDense | None:
    dense, reason = None, _build_once(sources)
    if reason is None:
        dense, reason = _load_both(sources)
    if dense is not None:
        reason = try_out(dense)
    try:
        write_verdict(path, Verdict("eager", reason) if reason else Verdict("compiled"))
    except OSError as error:  # then no other worker would know
        reason = reason or f"The verdict on the compiled code cannot be written ({error})"
    if reason is None:
        return dense
    logger.warning("%s; scoring eagerly", reason)
    return None


def _follow(
    verdict: Verdict, sources: _Sources, path: Path, try_out: TryOut, build: bool
) -> CompiledDense | None:
    again = f"to decide anew, remove {path} while no worker of this model runs"
    if verdict.engine == "eager":
        logger.warning("%s; scoring eagerly, as was decided once for this machine: %s", verdict.reason, again)
        return None
    if not build and not is_built(sources.library):
        return None
    dense, reason = None, _build_once(sources)
    if reason is None:
        dense, reason = _load_both(sources)
    if dense is not None:
        reason = try_out(dense)
    if reason is not None:
        raise WeightsError(
            f"workers of this model score with compiled code on this machine, and here it cannot be used: {reason}; "
            f"{again}"
        )
    return dense


class _BySize:
    """Runs the code that was made for batches of a size."""

    def __init__(self, few: Runner, many: Runner, most_few: int) -> None:
        self._few, self._many, self._most_few = few, many, most_few

    def __call__(self, dense: torch.Tensor, found: Embeddings) -> torch.Tensor:
        run = self._few if dense.shape[0] <= self._most_few else self._many
        return run([dense, *found.all])[0]


def _load_both(sources: _Sources) -> tuple[CompiledDense | None, str | None]:
    """The code of a library that is built, or the reason why it cannot be loaded."""
    library, few_library = sources.library, few_samples_library(sources.library)
    try:
        many = _load(library)
        few = _load(few_library) if few_library.is_file() else many
    except Exception as error:
        return None, f"The compiled code in {library} cannot be loaded ({error})"
    return _BySize(few, many, FEW_SAMPLES[sources.precision]), None


def _load(library: Path) -> Runner:
    runner: Runner = _RUNNER(str(library), 1).run
    return runner


def _build_once(sources: _Sources) -> str | None:
    """None if the library is there in the end, else the reason. One process builds, and the others wait."""
    library = sources.library
    if is_built(library):
        return None
    if compiler() is None:
        return "No C++ compiler on this host, so nothing can be compiled"
    with one_at_a_time(library):
        if is_built(library):
            return None
        logger.info(
            "Compiling the dense parts in %s, about 30 s, once for this machine (pid %d)",
            sources.precision,
            os.getpid(),
        )
        failure = build_in_subprocess(sources.folder, library, sources.precision, sources.seconds)
    return None if failure is None else f"The dense parts could not be compiled ({failure})"


def _compile_seconds(declaration: DLRMDeclaration) -> float:
    """Return the seconds that compiling may take, so that a worker is ready, if eagerly, before TorchServe ends it."""
    start = declaration.serving.startup_timeout_s
    return max(start - _REST_OF_START_S, start / 2)
