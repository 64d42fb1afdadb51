"""The lock files, and the two small programs beside them that scripts/setup asks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

import packaging
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "scripts" / "lock"
PINS = sorted(LOCK.glob("*.txt"))


def verify(packages: Path, *locks: Path, root: Path = ROOT, options: tuple[str, ...] = ()) -> list[str]:
    """The lines of scripts/lock/verify.py where only ``packages`` and the package packaging are installed."""
    (packages / "packaging").symlink_to(Path(packaging.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-S", str(LOCK / "verify.py"), *options, str(root), *map(str, locks)],
        env={"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == bool(done.stdout)
    return done.stdout.splitlines()


def write_distribution(folder: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> None:
    """Metadata and RECORD as pip leaves them; ``files`` maps a path to "hash,size"."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},{size}\n" for path, size in (files or {}).items()))


def editable(folder: Path, root: Path) -> None:
    """The project itself, installed editable from ``root``."""
    write_distribution(folder, "torchserve-dlrm", "0.1.0")
    origin = '{"dir_info": {"editable": true}, "url": "%s"}' % root.as_uri()  # noqa: UP031
    (folder / "torchserve_dlrm-0.1.0.dist-info" / "direct_url.json").write_text(origin)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text(
        "# a comment\nfbgemm-gpu-cpu==1.8.0\ntyping_extensions==4.0\n"
        'numpy==1.0 ; python_version < "3.10"\nnumpy==2.0 ; python_version >= "3.10"\n'
    )
    return path


def test_verify_accepts_what_the_lock_says(tmp_path: Path, lock: Path) -> None:
    packages = tmp_path / "packages"
    write_distribution(packages, "fbgemm-gpu-cpu", "1.8.0", {"fbgemm_gpu/fbgemm.so": "sha256=x,4"})
    (packages / "fbgemm_gpu").mkdir()
    (packages / "fbgemm_gpu" / "fbgemm.so").write_text("four")
    write_distribution(packages, "typing-extensions", "4.0")
    write_distribution(packages, "numpy", "2.0")
    editable(packages, tmp_path)
    assert verify(packages, lock, root=tmp_path) == []


def test_verify_names_everything_that_is_wrong(tmp_path: Path, lock: Path) -> None:
    packages = tmp_path / "packages"
    write_distribution(packages, "fbgemm-gpu-cpu", "1.8.0", {"fbgemm_gpu/fbgemm.so": "sha256=x,4"})
    (packages / "fbgemm_gpu").mkdir()
    (packages / "fbgemm_gpu" / "fbgemm.so").write_text("overwritten")
    write_distribution(packages, "fbgemm-gpu", "1.8.0")
    write_distribution(packages, "numpy", "2.1")
    editable(packages, tmp_path / "elsewhere")
    assert verify(packages, lock, root=tmp_path) == [
        "typing-extensions is not installed, the lock says ==4.0",
        "numpy 2.1 is installed, the lock says ==2.0",
        "fbgemm-gpu is installed over fbgemm-gpu-cpu; both unpack into the folder fbgemm_gpu",
        "fbgemm-gpu-cpu is damaged: fbgemm_gpu/fbgemm.so is not the file that was installed",
        f"torchserve-dlrm is not installed editable from {tmp_path}",
    ]


def test_verify_takes_a_copy_of_the_project_for_an_image(tmp_path: Path) -> None:
    packages, lock = tmp_path / "packages", tmp_path / "lock.txt"
    lock.write_text("numpy==2.0\n")
    write_distribution(packages, "numpy", "2.1")
    wrong = "numpy 2.1 is installed, the lock says ==2.0"
    options = ("--not-editable",)
    assert verify(packages, lock, options=options) == [wrong, "torchserve-dlrm is not installed"]
    (packages / "packaging").unlink()
    write_distribution(packages, "torchserve-dlrm", "0.1.0")
    assert verify(packages, lock, options=options) == [wrong]


@pytest.mark.parametrize(
    ("nvidia_smi", "says"),
    [
        ('echo "GPU 0: NVIDIA H100 (UUID: GPU-1)"', "cuda 1 NVIDIA GPU here"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "cpu no working NVIDIA GPU here"),
        ("echo 'No devices were found'", "cpu no working NVIDIA GPU here"),
        (None, "cpu no working NVIDIA GPU here"),
    ],
)
def test_find_gpu_without_libcuda(tmp_path: Path, nvidia_smi: str | None, says: str) -> None:
    if nvidia_smi is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert find_gpu(tmp_path, "def load(name): raise OSError(name)") == says


@pytest.mark.parametrize(
    ("failed", "count", "version", "says"),
    [
        (0, 2, 13000, "cuda 2 NVIDIA GPUs here"),
        (
            0,
            1,
            12080,
            "cpu the NVIDIA driver supports CUDA 12.8 and torch needs 13.0; update the driver, then",
        ),
        (0, 0, 13000, "cpu no working NVIDIA GPU here"),
        (100, 1, 13000, "cpu no working NVIDIA GPU here"),
    ],
)
def test_find_gpu_with_libcuda(tmp_path: Path, failed: int, count: int, version: int, says: str) -> None:
    library = f"""
class load:
    def __init__(self, name): assert name == "libcuda.so.1"
    def cuInit(self, flags): return {failed}
    def cuDeviceGetCount(self, out): out._obj.value = {count}; return 0
    def cuDriverGetVersion(self, out): out._obj.value = {version}; return 0
"""
    assert find_gpu(tmp_path, library).startswith(says)


def find_gpu(path: Path, load: str) -> str:
    """Output of find_gpu.py with PATH=path and ``load`` in place of the loader of libraries."""
    run = f"runpy.run_path({str(LOCK / 'find_gpu.py')!r}, run_name='__main__')"
    program = f"{load}\nimport ctypes, runpy; ctypes.CDLL = load; {run}"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PATH": str(path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def lock_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_locks_pin_exactly(path: Path) -> None:
    for line in lock_lines(path):
        pin = r"[\w.-]+==[\w.]+(\+cpu)?(,!=2\.13\.0\+cpu)?( ; python_version (<|>=) \"3\.11\")?"
        assert re.fullmatch(pin, line), line


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.13"])
@pytest.mark.parametrize("stack", ["cpu", "cuda"])
def test_locks_hold_all_that_pyproject_asks_for(stack: str, version: str) -> None:
    asked = [Requirement(line) for line in asked_for(stack)]
    locked = {}
    for name in ("common", "dev", "java", stack):
        for line in lock_lines(LOCK / f"{name}.txt"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": version}):
                exact = next(iter(s.version for s in pin.specifier if s.operator == "=="))
                assert canonicalize_name(pin.name) not in locked, f"{pin.name} is pinned twice"
                locked[canonicalize_name(pin.name)] = exact
    for requirement in asked:
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement
    assert len(locked) > 70


def asked_for(stack: str) -> list[str]:
    """The requirements of pyproject.toml and of its extras for ``stack``, by the metadata that pip made."""
    lines = [Requirement(line) for line in requires("torchserve-dlrm") or []]
    wanted = [
        r
        for r in lines
        if r.marker is None
        or any(
            r.marker.evaluate({"extra": e})
            for e in (stack, "dev", "java", "baseline", "tensorboard", "compare")
        )
    ]
    assert len(wanted) > 15
    return [f"{r.name}{r.specifier}" for r in wanted]
