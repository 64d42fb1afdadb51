"""Prints ``cuda REASON`` if this machine can run the locked CUDA stack, else ``cpu REASON``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

# The locked torch is built for CUDA 13.0, in the driver's own way of counting.
NEEDED = 13000


def ask_driver() -> tuple[int, int] | None:
    """(number of GPUs, CUDA version that the driver supports) by libcuda, or None if it does not work."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return count.value, version.value


def ask_nvidia_smi() -> tuple[int, int] | None:
    """The same by nvidia-smi, for machines where libcuda is not on the loader's path."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        listed = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    # It prints the driver's CUDA version for people only, so the number of GPUs has to do.
    return count, NEEDED


def choose() -> str:
    """The stack and the reason, in one line."""
    count, version = ask_driver() or ask_nvidia_smi() or (0, 0)
    if count == 0:
        return "cpu no working NVIDIA GPU here"
    if version < NEEDED:
        return (
            f"cpu the NVIDIA driver supports CUDA {version // 1000}.{version % 1000 // 10} and torch needs "
            f"{NEEDED // 1000}.{NEEDED % 1000 // 10}; update the driver, then run scripts/setup --cuda"
        )
    return f"cuda {count} NVIDIA GPU{'s' if count > 1 else ''} here"


if __name__ == "__main__":
    print(choose())
