"""Compiles a library in a process of its own: ``python -m dlrm_factory.compiled.build FOLDER LIBRARY PRECISION``.

The compiler takes seconds of CPU and some hundred megabytes, which a serving worker should not keep.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from dlrm_factory.compiled.capability import Precision
from dlrm_factory.compiled.dense_net import DenseNet
from dlrm_factory.config.reading import read_declaration
from dlrm_factory.model import load_dense, make_model
from dlrm_factory.weights.sealed import DECLARATION_FILE, read_dense

__all__ = ["build_in_subprocess", "compiler", "few_samples_library"]

logger = logging.getLogger(__name__)

_EXAMPLE_BATCH = 8
_MAX_BATCH = 1 << 24
_TIMEOUT_SECONDS = 600

# bf16: oneDNN, with weights laid out once for its matrix units. fp32: the BLAS library's products, which are a fifth
# faster than oneDNN's (AVX2, 512 samples), and neither prepare nor keep anything for each batch size.
_MANY_SAMPLES: dict[Precision, dict[str, Any]] = {"bf16": {"freezing": True}, "fp32": {}}
# Products written out in C++, without oneDNN, which takes longer to prepare a call than to compute one sample.
_FEW_SAMPLES = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}


def compiler() -> str | None:
    """The C++ compiler that AOTInductor would use; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def few_samples_library(library: Path) -> Path:
    """Where the code for batches of a few samples is, beside ``library``."""
    return library.with_name(f"{library.stem}-few{library.suffix}")


def build_in_subprocess(folder: Path, library: Path, precision: Precision) -> str | None:
    """Compile the dense parts of the sealed weights in ``folder`` into ``library``. None, or why it failed.

    `few_samples_library` is made before; where its code cannot be had, there is ``library`` alone.
    """
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-m", "dlrm_factory.compiled.build"]
    command += [str(folder.resolve()), str(library), precision]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    try:
        done = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0 and library.is_file():
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it printed nothing"]
    return f"the compiler process ended with {done.returncode}: {lines[-1]}"


def _build(folder: Path, library: Path, precision: Precision) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    declaration = read_declaration(folder / DECLARATION_FILE)
    model = make_model(declaration)
    load_dense(model, read_dense(folder))
    net = DenseNet(model, declaration, precision).eval()
    example = (
        torch.zeros(_EXAMPLE_BATCH, len(declaration.dense_features)),
        torch.zeros(
            _EXAMPLE_BATCH, len(declaration.sparse_features), declaration.embedding_dim, dtype=net.dtype
        ),
    )
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    # Headers that are compiled once serve every later build.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(library.parent / "inductor")
    with torch.no_grad():
        exported = torch.export.export(net, example, dynamic_shapes=({0: batch}, {0: batch}))
        try:
            _compile(exported, few_samples_library(library), _FEW_SAMPLES)
        except Exception:  # on a CPU for which it has no such code
            logger.warning("No code of its own for a few samples on this CPU", exc_info=True)
        _compile(exported, library, _MANY_SAMPLES[precision])


def _compile(exported: torch.export.ExportedProgram, library: Path, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = torch._inductor.aoti_compile_and_package(
            exported, package_path=f"{scratch}/package.pt2", inductor_configs=options
        )
        # The library alone: torch would unpack a package for each worker anew, which could then share no page of it.
        with zipfile.ZipFile(made) as package:
            (name,) = [name for name in package.namelist() if name.endswith(".so")]
            found = Path(package.extract(name, scratch))
        # Moved whole, so that a reader never sees half a library.
        found.replace(library)


if __name__ == "__main__":
    os.nice(10)
    _build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])  # type: ignore[arg-type]
