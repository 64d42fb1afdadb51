"""The compiled dense parts agree with the eager ones, and whatever goes wrong leaves all scorers of a host eager."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from support.checkout import ROOT
from support.compiled import checksum, seal, verdicts
from support.nets import trusted
from support.processes import end_of, ranks
from support.sharding import DTYPES, declared, mixed_shardings

from dlrm_factory import scorer as scorer_module
from dlrm_factory.batch import split
from dlrm_factory.compiled import best_precision, dense_library, library_path
from dlrm_factory.compiled.build import compiler
from dlrm_factory.compiled.dense_library import cache_folder
from dlrm_factory.goldens import add_goldens
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.tools.archive.verification import verify_weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DLRM_CACHE_DIR", str(folder))
    return folder


def expected_engine():
    return "compiled" if compiler() else "eager"


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("declaration", "precision"),
    [
        (mixed_shardings(), "fp32"),
        (declared("auto", "mean", DTYPES[4], "dlrm_dcn"), "bf16"),
        (trusted("din"), "fp32"),
    ],
    ids=["dlrm", "dlrm_dcn", "din"],
)
def test_compiled_equals_eager(tmp_path, host_cache, monkeypatch, declaration, precision):
    monkeypatch.setenv("DLRM_CACHE_DIR", str(host_cache))  # its compiled headers are those of the whole run
    folder = seal(declaration, tmp_path, precision=precision)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == expected_engine()
    for size in (1, 2, 77, 513, 1100):
        # Sequences as long as may be, in small batches.
        batch = random_batch(declaration, size, seed=size, steps=200 if size < 100 else 1)
        fast, eager = scorer.logits(batch), scorer.reference_logits(batch)
        assert fast.shape == (size,)
        if precision == "fp32":
            # Of a logit's own size: with these weights some are above 30.
            assert (np.abs(fast - eager) / np.maximum(np.abs(eager), 1)).max() < 1e-5
        else:
            assert np.abs(probabilities(fast) - probabilities(eager)).max() < 2e-2
    # The same sample alone, among a few and among many.
    batch = random_batch(declaration, 77, seed=77)
    ways = [np.concatenate([scorer.logits(piece) for piece in split(batch, size)]) for size in (1, 16, 77)]
    if precision == "fp32":
        assert np.ptp(ways, axis=0).max() < 1e-5
    else:
        assert np.ptp([probabilities(way) for way in ways], axis=0).max() < 2e-2
    assert scorer.logits(random_batch(declaration, 0)).shape == (0,)
    # A second worker of the host takes the library that is there, and gives the same bits.
    second = Scorer.load(folder)
    second.compile(folder, build=False)
    assert second.engine == expected_engine()
    for size in (1, 9, 77, 513):
        batch = random_batch(declaration, size, seed=size)
        assert second.logits(batch).tobytes() == scorer.logits(batch).tobytes()


def fake_build(calls):
    def build(folder, target, precision, seconds):
        calls.append(seconds)
        return "no such thing"

    return build


def test_a_failed_build_leaves_it_eager(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dense_library, "compiler", lambda: "g++")
    monkeypatch.setattr(dense_library, "build_in_subprocess", fake_build([]))
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "could not be compiled (no such thing); scoring eagerly" in caplog.text


def test_a_host_that_cannot_start_the_compiler_stays_eager(tmp_path, monkeypatch, caplog):
    def start(*arguments, **settings):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(dense_library, "compiler", lambda: "g++")
    monkeypatch.setattr(subprocess, "Popen", start)
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "could not be compiled (Resource temporarily unavailable); scoring eagerly" in caplog.text


WITHOUT_RUNNER = """
import sys
from pathlib import Path
import torch
del torch._C._aoti
from dlrm_factory.scorer import Scorer
scorer = Scorer.load(Path(sys.argv[1]))
scorer.compile(Path(sys.argv[1]))
print(scorer.engine)
"""


@pytest.mark.slow
def test_a_torch_without_the_private_runner_scores_eagerly_and_says_so(tmp_path):
    folder = seal(mixed_shardings(), tmp_path)
    command = [sys.executable, "-c", WITHOUT_RUNNER, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "eager\n", done.stderr
    assert (
        "has no torch._C._aoti.AOTIModelContainerRunnerCpu, which runs compiled code; scoring eagerly"
        in done.stderr
    )


def test_no_compiler_is_one_log_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dense_library, "compiler", lambda: None)
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "No C++ compiler on this host" in caplog.text


def test_code_that_disagrees_is_not_used(tmp_path, monkeypatch):
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    wrong = lambda dense, found: found.pooled.sum(dim=1, keepdim=True) + 3  # noqa: E731
    monkeypatch.setattr(scorer_module, "compiled_dense", tried_out(wrong, reasons := []))
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "differ from eager ones" in reasons[0]


def tried_out(dense, reasons=None):
    """A `compiled_dense` that gives ``dense`` if the scorer's trial lets it."""

    def compiled_dense(*args, try_out, **kwargs):
        reason = try_out(dense)
        if reasons is not None:
            reasons.append(reason)
        return None if reason else dense

    return compiled_dense


def test_in_the_background_it_serves_meanwhile(tmp_path, monkeypatch):
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)

    def slow(*args, **kwargs):
        time.sleep(0.3)
        return eager_dense(scorer)

    monkeypatch.setattr(scorer_module, "compiled_dense", slow)
    batch = random_batch(scorer.declaration, 3)
    before = scorer.logits(batch)
    scorer.compile(folder, background=True)
    assert scorer.engine == "eager"
    deadline = time.monotonic() + 20
    while scorer.engine == "eager" and time.monotonic() < deadline:
        assert np.abs(scorer.logits(batch) - before).max() < 1e-5
    assert scorer.engine == "compiled"
    assert np.abs(scorer.logits(batch) - before).max() < 1e-5


def test_the_sharded_model_runs_in_the_callers_thread_alone(tmp_path, monkeypatch):
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    threads = set()
    reference = scorer.reference_outputs

    def watched(batch):
        threads.add(threading.current_thread())
        return reference(batch)

    monkeypatch.setattr(scorer, "reference_outputs", watched)
    done = threading.Event()
    monkeypatch.setattr(scorer_module, "compiled_dense", lambda *args, **kwargs: eager_dense(scorer))
    monkeypatch.setattr(scorer_module.logger, "info", lambda *args: done.set())
    scorer.compile(folder, background=True)
    assert done.wait(30)
    assert scorer.engine == "compiled"
    assert threads == {threading.current_thread()}


def eager_dense(scorer):
    return torch.no_grad()(lambda dense, found: torch.from_numpy(scorer._interact_eagerly(dense, found)))


def _build_slowly(folder, target, precision, seconds):
    with (target.parent / "builds").open("a") as builds:
        builds.write("built\n")
    time.sleep(0.5)
    target.write_bytes(b"library")
    target.with_suffix(".json").write_bytes(msgspec.json.encode({target.name: checksum(target)}))


def _worker(folder, precision, declaration_bytes):
    from dlrm_factory.config import parse_declaration

    dense_library.compiler = lambda: "g++"
    dense_library.build_in_subprocess = _build_slowly
    declaration = parse_declaration(declaration_bytes)
    dense_library._load = lambda path: lambda inputs: [inputs[0].sum(1)]
    assert dense_library.compiled_dense(folder, declaration, precision, try_out=_try_out) is not None


def _try_out(dense):
    with (cache_folder() / "tried").open("a") as tried:
        tried.write(f"{os.getpid()}\n")


@pytest.mark.compiler
def test_a_net_that_cannot_be_exported_is_scored_eagerly_and_says_why(tmp_path, host_cache, monkeypatch):
    monkeypatch.setenv("DLRM_CACHE_DIR", str(host_cache))
    declaration = trusted("branching")
    torch.set_num_threads(declaration.serving.threads)  # as verifying does; code is for a number of threads
    folder = seal(declaration, tmp_path)
    add_goldens(folder)  # else there is nothing to verify with
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert scorer.eager_reason is not None
    assert "could not be compiled" in scorer.eager_reason
    assert "branching.py" in scorer.eager_reason or "data-dependent" in scorer.eager_reason
    assert verify_weights(folder, build=False).eager_reason == scorer.eager_reason


@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_builds_and_the_others_wait(tmp_path):
    from dlrm_factory.config import dump_declaration

    declaration = mixed_shardings()
    folder = seal(declaration, tmp_path)
    with ranks(_worker, folder, "fp32", dump_declaration(declaration), size=3) as workers:
        assert end_of(workers, within_s=60) == [0, 0, 0]
    assert (cache_folder() / "builds").read_text() == "built\n"
    assert len(set((cache_folder() / "tried").read_text().split())) == 3
    assert verdicts(cache_folder()) == ['{"engine":"compiled","reason":""}\n']


def test_the_name_changes_with_what_a_package_depends_on(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    declaration = mixed_shardings()
    one, other = seal(declaration, tmp_path / "a"), seal(declaration, tmp_path / "b", seed=6)
    names = {
        library_path(one, declaration, "fp32"),
        library_path(one, declaration, "bf16"),
        library_path(other, declaration, "fp32"),
        library_path(one, declared("auto", "sum", DTYPES[0]), "fp32"),
    }
    assert len(names) == 4
    assert library_path(one, declaration, "fp32") in names


def test_a_cache_that_others_may_write_is_not_used(cache):
    cache.mkdir(mode=0o700)
    assert cache_folder() == cache
    cache.chmod(0o777)
    assert cache_folder() is None


def test_precision_fits_the_cpu():
    assert best_precision() in ("fp32", "bf16")
