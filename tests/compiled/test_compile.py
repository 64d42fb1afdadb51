"""The compiled dense parts agree with the eager ones, and whatever goes wrong leaves all scorers of a host eager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
import xxhash
from support.batches import random_batch
from support.checkout import ROOT
from support.compiled import seal
from support.nets import trusted
from support.processes import end_of, ranks
from support.sharding import DTYPES, declared, mixed_shardings

from dlrm_factory import scorer as scorer_module
from dlrm_factory.batch import Embeddings, split
from dlrm_factory.compiled import best_precision, dense_library, library_path
from dlrm_factory.compiled.build import compiler, few_samples_library, is_built
from dlrm_factory.compiled.dense_library import FEW_SAMPLES, cache_folder
from dlrm_factory.errors import WeightsError
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
            np.testing.assert_allclose(fast, eager, rtol=2e-6, atol=1e-5)
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


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Sealed weights, and a compiler that "builds" libraries which score as the eager model does."""
    folder = seal(mixed_shardings(), tmp_path)
    interact = Scorer.load(folder)._interact_eagerly
    builds = []

    def build(_, library, precision, seconds):
        builds.append(seconds)
        library.write_bytes(b"code")
        few_samples_library(library).write_bytes(b"code for a few")
        listing = {path.name: checksum(path) for path in (library, few_samples_library(library))}
        library.with_suffix(".json").write_bytes(msgspec.json.encode(listing))

    def load(path):
        return torch.no_grad()(lambda inputs: [torch.from_numpy(interact(inputs[0], Embeddings(inputs[1])))])

    monkeypatch.setattr(dense_library, "compiler", lambda: "g++")
    monkeypatch.setattr(dense_library, "build_in_subprocess", build)
    monkeypatch.setattr(dense_library, "_load", load)
    return SimpleNamespace(
        folder=folder, builds=builds, library=library_path(folder, mixed_shardings(), "fp32")
    )


def checksum(path):
    return xxhash.xxh3_128(path.read_bytes()).hexdigest()


def worker(folder, **options):
    """A worker's scorer, compiled as the verdict says."""
    scorer = Scorer.load(folder)
    scorer.compile(folder, **options)
    return scorer


def verdicts(cache):
    return [path.read_text() for path in cache.glob("verdict-*.json")]


def test_later_workers_follow_a_failure_even_where_they_could_compile(built, cache, monkeypatch, caplog):
    with monkeypatch.context() as broken:
        broken.setattr(dense_library, "build_in_subprocess", fake_build([]))
        first = worker(built.folder)
    caplog.clear()
    second = worker(built.folder)
    assert (first.engine, second.engine) == ("eager", "eager")
    assert built.builds == []
    assert len(verdicts(cache)) == 1
    assert "could not be compiled (no such thing); scoring eagerly, as was decided once" in caplog.text
    assert f"remove {next(cache.glob('verdict-*.json'))} while no worker" in caplog.text
    batch = random_batch(first.declaration, 40)
    assert first.logits(batch).tobytes() == second.logits(batch).tobytes()


def test_a_host_without_a_compiler_stays_eager_when_one_is_installed(built, cache, monkeypatch):
    with monkeypatch.context() as bare:
        bare.setattr(dense_library, "compiler", lambda: None)
        assert worker(built.folder).engine == "eager"
    assert worker(built.folder).engine == "eager"
    # Whoever removes the verdict, as the log line says, has the next worker decide anew.
    next(cache.glob("verdict-*.json")).unlink()
    assert worker(built.folder).engine == "compiled"


def test_later_workers_follow_a_success(built, monkeypatch):
    assert worker(built.folder).engine == "compiled"
    monkeypatch.setattr(dense_library, "compiler", lambda: None)
    assert worker(built.folder, build=False).engine == "compiled"
    assert worker(built.folder).engine == "compiled"
    assert len(built.builds) == 1


def test_a_library_that_is_gone_or_damaged_is_compiled_again(built):
    worker(built.folder)
    for path in (built.library, few_samples_library(built.library)):
        path.write_bytes(b"other code")
        assert not is_built(built.library)
        assert worker(built.folder).engine == "compiled"
        path.unlink()
        assert worker(built.folder).engine == "compiled"
    assert len(built.builds) == 5


def test_a_removed_cache_is_made_again(built, cache):
    worker(built.folder)
    shutil.rmtree(cache)
    assert worker(built.folder).engine == "compiled"
    assert len(built.builds) == 2


def test_a_worker_that_cannot_do_as_the_others_do_is_not_ready(built, monkeypatch):
    worker(built.folder)
    built.library.unlink()
    monkeypatch.setattr(dense_library, "compiler", lambda: None)
    with pytest.raises(
        WeightsError, match=r"score with compiled code on this machine, .* No C\+\+ compiler .* remove"
    ):
        worker(built.folder)


def test_code_that_scores_otherwise_than_when_it_was_decided_is_not_used(built, monkeypatch):
    worker(built.folder)
    monkeypatch.setattr(
        dense_library, "_load", lambda path: lambda inputs: [inputs[1].sum(dim=1, keepdim=True) + 3]
    )
    with pytest.raises(WeightsError, match="Compiled scores differ from eager ones"):
        worker(built.folder)


def test_in_the_background_it_is_a_log_line(built, monkeypatch, caplog):
    worker(built.folder)
    monkeypatch.setattr(
        dense_library, "_load", lambda path: lambda inputs: [inputs[1].sum(dim=1, keepdim=True) + 3]
    )
    scorer = worker(built.folder, background=True)
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join(60)
    assert scorer.engine == "eager"
    assert "Scoring eagerly: workers of this model score with compiled code" in caplog.text


def test_another_models_verdict_is_another(built, tmp_path, cache, monkeypatch):
    """The same dense weights with other golden requests: the code is shared, what it was tried out with is not."""
    worker(built.folder)
    shutil.copytree(built.folder, tmp_path / "other")
    add_goldens(tmp_path / "other")
    assert worker(tmp_path / "other").engine == "compiled"
    assert len(built.builds) == 1
    assert len(verdicts(cache)) == 2


@pytest.mark.parametrize(("start", "seconds"), [(600, 540), (60, 30)])
def test_compiling_gives_up_before_the_worker_is_late(built, tmp_path, start, seconds):
    serving = msgspec.structs.replace(mixed_shardings().serving, precision="fp32", startup_timeout_s=start)
    (tmp_path / "late").mkdir()
    declaration = msgspec.structs.replace(mixed_shardings(), serving=serving)
    worker(seal(declaration, tmp_path / "late"))
    assert built.builds == [seconds]


def test_code_that_cannot_be_loaded_is_not_used(built, monkeypatch, caplog):
    monkeypatch.setattr(dense_library, "_load", LOAD)
    assert worker(built.folder).engine == "eager"
    assert "cannot be loaded" in caplog.text


LOAD = dense_library._load


def runner(name, met):
    def run(inputs):
        met.append((name, inputs[0].shape[0]))
        return [inputs[0].sum(1, keepdim=True)]

    return run


@pytest.mark.parametrize("has_few", [True, False])
def test_each_size_runs_the_code_made_for_it(built, monkeypatch, has_few):
    met = []
    worker(built.folder)
    if not has_few:
        few_samples_library(built.library).unlink()
        listing = {built.library.name: checksum(built.library)}
        built.library.with_suffix(".json").write_bytes(msgspec.json.encode(listing))
    monkeypatch.setattr(
        dense_library, "_load", lambda found: runner("few" if "few" in found.name else "many", met)
    )
    dense = dense_library.compiled_dense(
        built.folder, Scorer.load(built.folder).declaration, "fp32", try_out=lambda dense: None, build=False
    )
    most = FEW_SAMPLES["fp32"]
    for size in (1, most, most + 1):
        assert dense(torch.ones(size, 2), Embeddings(torch.ones(size, 24))).shape == (size, 1)
    few = "few" if has_few else "many"
    assert met == [(few, 1), (few, most), ("many", most + 1)]


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
