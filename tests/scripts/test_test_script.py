"""Options of `scripts/test`, and the marks it chooses by."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.depth import DEPTHS, examples

STUB = '#!/bin/sh\necho "depth=$DLRM_TEST_DEPTH" "$@"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts" / "test")
    for name in ("scripts/setup", "scripts/check", ".venv/bin/python"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB if name.endswith("python") else "#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def run(checkout: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["scripts/test", *words], cwd=checkout, capture_output=True, text=True, timeout=60, check=True
    )
    return shlex.split(done.stdout)


def test_all_tests_run_by_default(checkout: Path) -> None:
    words = run(checkout, "tests/house")
    assert words[0] == "depth=ci"
    assert words[-1] == "tests/house"
    assert words.count("-m") == 1  # python's own


def test_quick_leaves_out_what_is_slow(checkout: Path) -> None:
    words = run(checkout, "-x", "--quick")
    assert words[0] == "depth=dev"
    line = " ".join(words)
    assert "-m not integration and not compiler and not multiprocess and not slow" in line
    assert words[-1] == "-x"


def test_deep_draws_more_of_all_tests(checkout: Path) -> None:
    words = run(checkout, "--deep")
    assert words[0] == "depth=deep"
    assert words.count("-m") == 1


def test_help_says_the_options(checkout: Path) -> None:
    text = " ".join(run(checkout, "--help"))
    assert "--quick" in text
    assert "--deep" in text


def test_depths_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for depth in DEPTHS:
        monkeypatch.setattr("support.depth.DEPTH", depth)
        drawn[depth] = [examples(3), examples(40), examples(600)]
    assert drawn == {"dev": [3, 5, 60], "ci": [3, 40, 600], "deep": [30, 400, 6000]}


def test_what_starts_a_server_without_its_mark_is_found(pytester_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(pytester_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "2 passed, 1 error" in done.stdout  # it is found once the test is over
    assert "needs the marks ['compiler']" in done.stdout


@pytest.fixture
def pytester_file(tmp_path: Path) -> Path:
    """A folder with the project's conftest.py and a test that starts the compiler, with the mark and without."""
    for name in ("conftest.py", "support"):
        source = ROOT / "tests" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    compiler: compiles\npythonpath = .\naddopts = --import-mode=importlib\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import subprocess, sys\nimport pytest\n"
        "def start():\n"
        "    subprocess.run([sys.executable, '-c', '0', 'dlrm_factory.compiled.build'])\n"
        "@pytest.mark.compiler\n"
        "def test_marked(): start()\n"
        "def test_bare(): start()\n"
    )
    return tmp_path / "test_it.py"
