"""Process that compiles: what it leaves, and that nothing of it is left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from support.compiled import seal
from support.sharding import mixed_shardings

from dlrm_factory.compiled import library_path
from dlrm_factory.compiled.build import build_in_subprocess, few_samples_library, is_built


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DLRM_CACHE_DIR", str(tmp_path / "cache"))


# In place of the compiler's process: ends with ``status`` and leaves ``files`` in the scratch folder.
PRETENDED = """
import sys
from pathlib import Path
files, status = {files!r}, {status}
for name, text in files.items():
    (Path(sys.argv[1]) / name).write_text(text)
sys.stderr.write("Traceback\\nRuntimeError: no such thing\\n")
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("files", "status", "failure"),
    [
        ({}, 1, "the compiler failed (status 1): RuntimeError: no such thing"),
        ({"few.so": "code"}, -9, "the compiler failed (status -9): RuntimeError: no such thing"),
        ({"many.so": "code", "few.log": "\nKeyError: avx\n"}, 0, None),
        ({"many.so": "code", "few.so": "code"}, 0, None),
    ],
    ids=["nothing", "killed", "many", "both"],
)
def test_what_the_compiler_leaves(tmp_path, monkeypatch, caplog, files, status, failure):
    popen = subprocess.Popen

    def start(command, **settings):
        code = PRETENDED.format(files=files, status=status)
        if status < 0:
            code = code.replace(
                "sys.exit(status)", "sys.stderr.flush(); import os; os.kill(os.getpid(), -status)"
            )
        return popen([sys.executable, "-c", code, command[-2]], **settings)

    monkeypatch.setattr(subprocess, "Popen", start)
    folder = seal(mixed_shardings(), tmp_path)
    library = library_path(folder, mixed_shardings(), "fp32")
    assert build_in_subprocess(folder, library, "fp32") == failure
    assert is_built(library) == (failure is None)
    assert few_samples_library(library).is_file() == (failure is None and "few.so" in files)
    expected = "few.log" in files
    assert (
        "No code of its own for a few samples on this host: the compiler failed: KeyError" in caplog.text
    ) is expected


def test_a_compiler_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    popen, started = subprocess.Popen, []

    def start(*arguments, **settings):
        started.append(popen(["sh", "-c", "sleep 60 & wait"], **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    folder = seal(mixed_shardings(), tmp_path)
    library = library_path(folder, mixed_shardings(), "fp32")
    assert "took too long; raise serving.startup_timeout_s" in build_in_subprocess(
        folder, library, "fp32", 0.1
    )
    (process,) = started
    assert process.returncode is not None
    running = [each.pid for each in psutil.process_iter() if each.status() != psutil.STATUS_ZOMBIE]
    assert process.pid not in [os.getpgid(pid) for pid in running if psutil.pid_exists(pid)]
