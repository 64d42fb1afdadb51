"""Compiles a library in a process of its own: ``python -m dlrm_factory.compiled.build FOLDER LIBRARY PRECISION KIND``.

KIND is ``few`` or ``many``: the samples of a batch that the code is for. The compiler takes seconds of CPU and some
hundred megabytes, which a serving worker should not keep.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import xxhash

from dlrm_factory.compiled.dense_net import DenseNet, Precision
from dlrm_factory.config.reading import read_declaration
from dlrm_factory.model.model import load_dense, make_model
from dlrm_factory.weights.seal import DECLARATION_FILE
from dlrm_factory.weights.sealed import read_dense

__all__ = ["build_in_subprocess", "compiler", "few_samples_library", "is_built"]

logger = logging.getLogger(__name__)

Kind = Literal["few", "many"]
_KINDS: tuple[Kind, ...] = ("few", "many")

_EXAMPLE_BATCH = 8
_MAX_BATCH = 1 << 24
_MAX_SECONDS = 540

# bf16: oneDNN, with weights laid out once for its matrix units. fp32: the BLAS library's products, which are a fifth
# faster than oneDNN's (AVX2, 512 samples), and neither prepare nor keep anything for each batch size.
_MANY_SAMPLES: dict[Precision, dict[str, Any]] = {"bf16": {"freezing": True}, "fp32": {}}
# Products written out in C++, without oneDNN, which takes longer to prepare a call than to compute one sample.
_FEW_SAMPLES = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}


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
    built = {kind: scratch / f"{kind}.so" for kind in _KINDS}
    with ExitStack() as stack:
        processes = {
            kind: stack.enter_context(_started(folder, built[kind], precision, kind)) for kind in _KINDS
        }
        failures = {kind: _end(process, deadline) for kind, process in processes.items()}
    if failures["many"] is not None:
        return failures["many"]
    _listing(library).unlink(missing_ok=True)
    few_samples_library(library).unlink(missing_ok=True)
    checksums = {library.name: _checksum(built["many"])}
    if failures["few"] is None:
        checksums[few_samples_library(library).name] = _checksum(built["few"])
        built["few"].replace(few_samples_library(library))
    else:  # on a CPU for which the compiler has no such code
        logger.warning("No code of its own for a few samples on this host: %s", failures["few"])
    built["many"].replace(library)
    (scratch / "listing").write_bytes(msgspec.json.encode(checksums))
    (scratch / "listing").replace(_listing(library))
    return None


def _listing(library: Path) -> Path:
    return library.with_suffix(".json")


def _checksum(path: Path) -> str:
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


@contextmanager
def _started(
    folder: Path, library: Path, precision: Precision, kind: Kind
) -> Iterator[subprocess.Popen[str]]:
    """The process that compiles ``library``; the process does not outlive the block."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-m", "dlrm_factory.compiled.build"]
    command += [str(folder.resolve()), str(library), precision, kind]
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(path),
        # Headers that are compiled once serve every later build.
        "TORCHINDUCTOR_CACHE_DIR": str(library.parents[1] / "inductor"),
    }
    with subprocess.Popen(
        command,
        env=environment,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing, if it has ended


def _end(process: subprocess.Popen[str], deadline: float) -> str | None:
    """Wait for ``process`` until ``deadline`` (``time.monotonic()``). None, or why it failed."""
    try:
        _, printed = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "the compiler took too long; raise serving.startup_timeout_s, or declare serving.compile: off"
    if process.returncode == 0:
        return None
    lines = [line for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    return f"the compiler process ended with {process.returncode}: {lines[-1]}"


def _build(folder: Path, library: Path, precision: Precision, kind: Kind) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    declaration = read_declaration(folder / DECLARATION_FILE)
    model = make_model(declaration)
    load_dense(model, read_dense(folder))
    net = DenseNet(model, declaration, precision, few_samples=kind == "few").eval()
    example = (
        torch.zeros(_EXAMPLE_BATCH, len(declaration.dense_features)),
        torch.zeros(
            _EXAMPLE_BATCH, len(declaration.sparse_features), declaration.embedding_dim, dtype=net.dtype
        ),
    )
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    with torch.no_grad():
        made = torch._inductor.aoti_compile_and_package(
            torch.export.export(net, example, dynamic_shapes=({0: batch}, {0: batch})),
            package_path=str(library.with_suffix(".pt2")),
            inductor_configs=_FEW_SAMPLES if kind == "few" else _MANY_SAMPLES[precision],
        )
    # The library alone: torch would unpack a package for each worker anew, which could then share no page of it.
    with zipfile.ZipFile(made) as package:
        (name,) = [name for name in package.namelist() if name.endswith(".so")]
        library.write_bytes(package.read(name))


if __name__ == "__main__":
    os.nice(10)
    _build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])  # type: ignore[arg-type]
