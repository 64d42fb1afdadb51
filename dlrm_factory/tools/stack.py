"""Checks that the installed packages work together, and says in one sentence what is wrong if they do not.

``python -m dlrm_factory.tools.stack`` prints one line. Nothing heavy is imported at the top of this module, so that
a broken package is met inside `check_stack`, where it becomes a sentence instead of a traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import platform
import sys
import warnings
from types import ModuleType
from typing import Any

from dlrm_factory.errors import StackError

__all__ = ["FBGEMM_SERIES", "TORCHREC_SERIES", "TORCH_SERIES", "check_stack"]

# These three are built for each other; another minor version of one needs others of the rest.
TORCH_SERIES = "2.13"
FBGEMM_SERIES = "1.8"
TORCHREC_SERIES = "1.8"

_CPU_REPAIR = (
    "run scripts/setup, or `pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu` and then "
    "`pip install --no-deps fbgemm-gpu-cpu==1.8.0`"
)


def check_stack() -> dict[str, str]:
    """Imports the whole stack and runs one fbgemm operator.

    Returns:
        The version of each package by its import name, ``python``, and ``device``: ``"cpu"`` or e.g.
        ``"cuda: NVIDIA H100"``.

    Raises:
        StackError: one sentence with the first thing that is wrong, and the remedy.
    """
    _check_fbgemm_builds()
    torch = _import("torch", "install torch 2.13.0")
    _check_series("torch", torch.__version__, TORCH_SERIES)
    _import_fbgemm(torch)
    _run_fbgemm(torch)
    _import("torchrec", "`pip install --no-deps torchrec==1.8.0`")
    _check_series("torchrec", _version("torchrec"), TORCHREC_SERIES)
    _import("yaml", "`pip install PyYAML`; TorchServe's workers need it and do not say so")
    # By name: the import statement is kept for the handler alone, which runs inside TorchServe.
    _import("ts", "`pip install torchserve==0.12.0`")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fbgemm_gpu": _version("fbgemm-gpu-cpu", "fbgemm-gpu"),
        "torchrec": _version("torchrec"),
        "ts": _version("torchserve"),
        "device": _device(torch),
    }


def _check_fbgemm_builds() -> None:
    """Refuses the two builds of fbgemm side by side: they unpack into the same folder."""
    if _version("fbgemm-gpu") and _version("fbgemm-gpu-cpu"):
        raise StackError(
            "Both fbgemm-gpu and fbgemm-gpu-cpu are installed, and they overwrite each other's files "
            f"(`pip install torchrec` does that on a CPU machine): {_CPU_REPAIR}."
        )


def _check_series(name: str, version: str, series: str) -> None:
    """Refuses a version outside ``series``, e.g. 2.12.1 where 2.13 is needed."""
    if not f"{version}.".startswith(f"{series}."):
        raise StackError(
            f"{name} {version or '(of unknown version)'} is installed and {name} {series} is needed with "
            f"fbgemm {FBGEMM_SERIES}: run scripts/setup, or install {name} {series}.0."
        )


def _import_fbgemm(torch: ModuleType) -> None:
    """Imports fbgemm_gpu; its CUDA build on a CPU torch fails on libtorch_cuda.so, which says little."""
    version = _version("fbgemm-gpu-cpu", "fbgemm-gpu")
    if version:
        _check_series("fbgemm", version, FBGEMM_SERIES)
    build = "fbgemm-gpu-cpu" if torch.version.cuda is None else "fbgemm-gpu"
    try:
        _import("fbgemm_gpu", f"`pip install --no-deps --force-reinstall {build}==1.8.0`")
    except StackError as error:
        cause = str(error)
        if torch.version.cuda is None and "libtorch_cuda" in cause:
            raise StackError(
                f"fbgemm_gpu is the CUDA build and torch {torch.__version__} is a CPU build: {_CPU_REPAIR}."
            ) from error
        if torch.version.cuda is not None and ("libcuda.so" in cause or "libnvidia-ml.so" in cause):
            raise StackError(
                "The CUDA stack is installed and this machine has no working NVIDIA driver: "
                "run scripts/setup --cpu, or install the driver."
            ) from error
        raise


def _run_fbgemm(torch: ModuleType) -> None:
    """Sums three bag lengths up to offsets: the smallest operator that every lookup needs."""
    device = _device(torch).partition(":")[0]
    remedy = _CPU_REPAIR if torch.version.cuda is None else "run scripts/setup --force"
    try:
        lengths = torch.tensor([1, 2, 3], dtype=torch.int64, device=device)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths).tolist()
    except Exception as error:  # a missing operator or kernel: whatever it is, a person needs the remedy
        reason = f"its operators do not run on {device} ({_first_line(error)})"
        raise StackError(f"fbgemm_gpu is imported but {reason}: {remedy}.") from error
    if offsets != [0, 1, 3, 6]:
        raise StackError(
            f"fbgemm_gpu computes wrong offsets on {device}, {offsets} for lengths [1, 2, 3]: {remedy}."
        )


def _import(name: str, remedy: str) -> ModuleType:
    """Imports one package without its warnings; what goes wrong becomes a sentence."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise StackError(f"{name} is not installed: run scripts/setup, or {remedy}.") from error
        raise StackError(
            f"{name} needs the package {error.name}, which is not installed: run scripts/setup."
        ) from error
    except Exception as error:  # a broken binary package may raise anything
        reason = f"cannot be imported ({_first_line(error)})"
        raise StackError(f"{name} is installed but {reason}: run scripts/setup, or {remedy}.") from error


def _version(*distributions: str) -> str:
    """The version of the first distribution of these that is installed, else ``""``."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def _device(torch: Any) -> str:
    """``"cpu"``, or ``"cuda: "`` and the name of the first GPU."""
    with warnings.catch_warnings():
        # A driver that is too old for this torch warns here; the answer "cpu" says the same.
        warnings.simplefilter("ignore")
        return f"cuda: {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else "cpu"


def _first_line(error: BaseException) -> str:
    """The kind and first line of what led to ``error``: fbgemm_gpu hides the loader's words."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _main() -> int:
    """Prints one line: what works, or the one sentence that says what does not."""
    logging.disable(logging.CRITICAL)  # fbgemm logs about versions before we can say it better
    try:
        found = check_stack()
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    print("OK: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
