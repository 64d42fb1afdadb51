"""Process that compiles: what it leaves, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
import psutil
import pytest
from support.compiled import seal
from support.sharding import mixed_shardings

from dlrm_factory.compiled import library_path
from dlrm_factory.compiled.build import build_in_subprocess, few_samples_library, is_built
from dlrm_factory.config import ModuleArchitecture, ServingOptions, tiny
from dlrm_factory.config.trust import TRUST_VARIABLE

OWN_TABLE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Embedding(100, 1024)
        self.last = nn.Linear(1024, 1)

    def forward(self, dense):
        own = self.own(torch.where(dense[:, 0] == 13.5, 100, 7))
        return self.last(own).squeeze(1) + dense[:, 0]
"""

# What a worker with two threads answers. In a process of its own, which may not survive it.
TWO_THREADS = """
import json, sys
from pathlib import Path
import torch
from dlrm_factory.config import trust
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from handler.request import read_request
trust.trust_code(None)
torch.set_num_threads(2)
scorer = Scorer.load(Path(sys.argv[1]))
scorer.compile(Path(sys.argv[1]))
assert scorer.engine == "compiled", scorer.eager_reason
service = DLRMService(scorer)
def body(*prices):
    return {"body": json.dumps({"instances": [{"price": each} for each in prices], "output": "logit"}).encode()}
sent = [body(1), body(*[1] * 300, 13.5), body(2), body(13.5), body(3, 13.5), *[body(4)] * 20]
answers = service.handle([read_request(each, {}) for each in sent])
print(json.dumps([[each.status, json.loads(each.body)] for each in answers]))
"""


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


@pytest.mark.compiler
def test_an_index_out_of_range_is_the_requests_own_error_with_several_threads(
    tmp_path, host_cache, monkeypatch
):
    monkeypatch.setenv("DLRM_CACHE_DIR", str(host_cache))  # its compiled headers are those of the whole run
    monkeypatch.setenv(TRUST_VARIABLE, "all")
    declaration = msgspec.structs.replace(
        tiny(),
        architecture=ModuleArchitecture(module="net.py:Net", sources={"net.py": OWN_TABLE}),
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        serving=ServingOptions(max_samples=600),
    )
    folder = seal(declaration, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, str(folder)], capture_output=True, text=True, timeout=570
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _ in answers] == [200, 500, 200, 500, 500] + [200] * 20
    said = "Net cannot score: net.py:12 (forward): IndexError: index out of range in self"
    assert {answers[i][1]["message"] for i in (1, 3, 4)} == {said}
