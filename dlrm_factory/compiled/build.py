"""Compiles libraries in processes of their own: ``python -m dlrm_factory.compiled.build FOLDER SCRATCH PRECISION``.

Leaves ``few.so`` and ``many.so`` in SCRATCH, by the samples of a batch that the code is for, or the reason in
``few.log`` or ``many.log``. The compiler takes seconds of CPU and some hundred megabytes, which a serving worker should
not keep.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import xxhash

from dlrm_factory.compiled.dense_net import Precision, make_dense_net
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import ModuleError
from dlrm_factory.model.model import load_dense, make_model
from dlrm_factory.model.net import Net
from dlrm_factory.weights.seal import read_sealed_declaration
from dlrm_factory.weights.sealed import read_dense

__all__ = ["build_in_subprocess", "compiler", "few_samples_library", "is_built"]

logger = logging.getLogger(__name__)

Kind = Literal["few", "many"]
_KINDS: tuple[Kind, ...] = ("few", "many")

_EXAMPLE_BATCH = 8
_EXAMPLE_STEPS = 3
_MAX_BATCH = 1 << 24
_MAX_SECONDS = 540

# bf16: oneDNN, with weights laid out once for its matrix units. fp32: the BLAS library's products, which are a fifth
# faster than oneDNN's (AVX2, 512 samples), and neither prepare nor keep anything for each batch size.
_MANY_SAMPLES: dict[Precision, dict[str, Any]] = {"bf16": {"freezing": True}, "fp32": {}}
# Products written out in C++, without oneDNN, which takes longer to prepare a call than to compute one sample.
_FEW_SAMPLES = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}
# Loops of the compiled code itself; products of the BLAS library keep their threads.
_ONE_THREAD = {"cpp.threads": 1}


def compiler() -> str | None:
    """The C++ compiler that AOTInductor would use; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def few_samples_library(library: Path) -> Path:
    """Path, beside ``library``, of the code for batches of a few samples."""
    return library.with_name(f"{library.stem}-few{library.suffix}")


def is_built(library: Path) -> bool:
    """Return True if ``library`` and the code for a few samples are whole, as `build_in_subprocess` left them."""
    few = few_samples_library(library)
    try:
        listed = msgspec.json.decode(_listing(library).read_bytes(), type=dict[str, str])
        found = {path.name: _checksum(path) for path in (library, few) if path.is_file()}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return library.name in found and found == listed


def build_in_subprocess(
    folder: Path, library: Path, precision: Precision, seconds: float = _MAX_SECONDS
) -> str | None:
    """Compile the dense parts of the sealed weights in ``folder`` into ``library``. None, or why it failed.

    Compiles both kinds of code at the same time. Where that for a few samples cannot be had, there is ``library``
    alone. Checksums of what there is are listed last: see `is_built`.

    Args:
        seconds: the most it may take.
    """
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            return _build_both(folder, library, precision, Path(scratch), time.monotonic() + seconds)
    except OSError as error:  # no room on the disk, or for another process
        return str(error)


def _build_both(
    folder: Path, library: Path, precision: Precision, scratch: Path, deadline: float
) -> str | None:
    with _started(folder, scratch, precision) as process:
        late = _end(process, deadline)
    failures = {kind: late or _failure(scratch, kind, process.returncode) for kind in _KINDS}
    if failures["many"] is not None:
        return failures["many"]
    _listing(library).unlink(missing_ok=True)
    few_samples_library(library).unlink(missing_ok=True)
    checksums = {library.name: _checksum(_built(scratch, "many"))}
    if failures["few"] is None:
        checksums[few_samples_library(library).name] = _checksum(_built(scratch, "few"))
        _built(scratch, "few").replace(few_samples_library(library))
    else:  # on a CPU for which the compiler has no such code
        logger.warning("No code of its own for a few samples on this host: %s", failures["few"])
    _built(scratch, "many").replace(library)
    (scratch / "listing").write_bytes(msgspec.json.encode(checksums))
    (scratch / "listing").replace(_listing(library))
    return None


def _built(scratch: Path, kind: Kind) -> Path:
    return scratch / f"{kind}.so"


def _log(scratch: Path, kind: Kind) -> Path:
    return scratch / f"{kind}.log"


def _failure(scratch: Path, kind: Kind, status: int) -> str | None:
    """Reason for which there is no library of ``kind``; None if there is one. ``status``: of the compiling process."""
    if _built(scratch, kind).is_file():
        return None
    try:
        printed = _log(scratch, kind).read_text(errors="replace").splitlines()
    except OSError:
        printed = []
    said = next((line for line in reversed(printed) if line.strip()), "it printed nothing")
    return f"the compiler failed{f' (status {status})' if status else ''}: {said}"


def _listing(library: Path) -> Path:
    return library.with_suffix(".json")


def _checksum(path: Path) -> str:
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


@contextmanager
def _started(folder: Path, scratch: Path, precision: Precision) -> Iterator[subprocess.Popen[bytes]]:
    """The process that compiles; neither it nor one that it started outlives the block."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-m", "dlrm_factory.compiled.build"]
    command += [str(folder.resolve()), str(scratch), precision]
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(path),
        # What is found out of the CPU once serves every later build.
        "TORCHINDUCTOR_CACHE_DIR": str(scratch.parent / "inductor"),
    }
    with (
        _log(scratch, "many").open("wb") as log,
        subprocess.Popen(
            command,
            env=environment,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # a group of its own, to be ended whole
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nothing, if all have ended


def _end(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """Wait for ``process`` until ``deadline`` (``time.monotonic()``). None, or that it is late."""
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "the compiler took too long; raise serving.startup_timeout_s, or declare serving.compile: off"
    return None


def _build(folder: Path, library: Path, precision: Precision, kind: Kind) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    declaration = read_sealed_declaration(folder)
    model = make_model(declaration)
    load_dense(model, read_dense(folder))
    inner = model.net.eval()
    net = make_dense_net(model, declaration, precision, few_samples=kind == "few").eval()
    example, shapes = _example(declaration, net.dtype, inner)
    options = _FEW_SAMPLES if kind == "few" else _MANY_SAMPLES[precision]
    with torch.no_grad():
        exported = torch.export.export(net, example, dynamic_shapes=shapes)
        made = _compile(exported, library, options)
        if _may_end_its_process(made):
            made = _compile(exported, library, {**options, **_ONE_THREAD})
    # The library alone: torch would unpack a package for each worker anew, which could then share no page of it.
    partial = library.with_suffix(".partial")
    with zipfile.ZipFile(made) as package:
        (name,) = [name for name in package.namelist() if name.endswith(".so")]
        partial.write_bytes(package.read(name))
    partial.replace(library)


def _compile(exported: torch.export.ExportedProgram, library: Path, options: dict[str, Any]) -> str:
    """Path of the package with the code of ``exported``."""
    made: str = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(library.with_suffix(".pt2")), inductor_configs=options
    )
    return made


def _may_end_its_process(package: str) -> bool:
    """Return True if a loop that several threads share checks what it reads, as it does an index.

    An exception that leaves a thread of OpenMP ends the process.
    """
    with zipfile.ZipFile(package) as opened:
        texts = [opened.read(name) for name in opened.namelist() if name.endswith(".cpp")]
    return any(b"omp parallel" in text and b"TORCH_CHECK" in text for text in texts)


def _example(
    declaration: DLRMDeclaration, dtype: torch.dtype, net: Net
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Inputs of a net, and which of their dimensions are dynamic: samples, and the steps of sequences.

    ModuleError if what the module shares has the shape of a sequence's length, which nothing here could tell apart.
    """
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    steps: dict[int, Any] = {}
    sequences, sequence_shapes = [], []
    for feature in declaration.sequence_features:
        most, dim = feature.max_length, declaration.table(feature.table).embedding_dim
        if most > 1 and most not in steps:
            steps[most] = torch.export.Dim(f"steps_{most}", min=1, max=most)
        sequences.append(torch.zeros(_EXAMPLE_BATCH, min(most, _EXAMPLE_STEPS), dim))
        sequence_shapes.append({0: batch, 1: steps[most]} if most > 1 else {0: batch})
    example = (
        torch.zeros(_EXAMPLE_BATCH, len(declaration.dense_features)),
        torch.zeros(_EXAMPLE_BATCH, declaration.pooled_columns, dtype=dtype),
        tuple(sequences),
        tuple(torch.ones(_EXAMPLE_BATCH, dtype=torch.int64) for _ in sequences),
    )
    with torch.no_grad():
        shared = net.shared_part(*example) if net.shares else ()
        shorter = (*example[:2], tuple(each[:, :1] for each in sequences), example[3])
        if net.shares and [each.shape for each in shared] != [x.shape for x in net.shared_part(*shorter)]:
            raise ModuleError(
                "what its method shared returns has another shape for longer sequences; pool them there"
            )
    of_batch = {0: batch}
    lengths = tuple(of_batch for _ in sequences)
    return (*example, shared), (
        of_batch, of_batch, tuple(sequence_shapes), lengths, tuple(of_batch for _ in shared)
    )  # fmt: skip


def _build_all(folder: Path, scratch: Path, precision: Precision) -> None:
    """Compile both kinds at the same time, in two processes that share one import of the compiler."""
    importlib.import_module("torch._inductor.compile_fx")
    child = os.fork()
    if child == 0:
        with _log(scratch, "few").open("wb") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        _build(folder, _built(scratch, "few"), precision, "few")
        return
    try:
        _build(folder, _built(scratch, "many"), precision, "many")
    finally:
        os.waitpid(child, 0)


if __name__ == "__main__":
    os.nice(10)
    gc.disable()  # for the seconds that this process lives: a tenth of its time
    _build_all(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])  # type: ignore[arg-type]
