"""The compiled dense parts agree with the eager ones, and whatever goes wrong leaves the scorer eager."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import threading
import time

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch, random_state
from support.sharding import DTYPES, declared, mixed_shardings

from dlrm_factory import scorer as scorer_module
from dlrm_factory.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.compiled import best_precision, dense_library, library_path
from dlrm_factory.compiled.build import compiler, few_samples_library
from dlrm_factory.compiled.cache import cache_folder
from dlrm_factory.compiled.dense_library import FEW_SAMPLES
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.weights import seal_weights


def seal(declaration, folder, *, precision="fp32", seed=5):
    serving = msgspec.structs.replace(declaration.serving, precision=precision)
    declaration = msgspec.structs.replace(declaration, serving=serving)
    save_checkpoint(folder / "c.safetensors", declaration, random_state(declaration, seed=seed))
    seal_weights(open_checkpoint(folder / "c.safetensors"), folder / "sealed")
    return folder / "sealed"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DLRM_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    """One for the real builds, which share the compiler's headers."""
    return tmp_path_factory.mktemp("compiled") / "cache"


def expected_engine():
    return "compiled" if compiler() else "eager"


@pytest.mark.parametrize(
    ("declaration", "precision"),
    [
        (mixed_shardings(), "fp32"),
        (declared("auto", "mean", DTYPES[4], "dlrm_dcn"), "bf16"),
        (declared("auto", "sum", DTYPES[2], "dlrm_projection"), "fp32"),
    ],
    ids=["dlrm", "dlrm_dcn", "dlrm_projection"],
)
def test_compiled_equals_eager(tmp_path, compile_cache, monkeypatch, declaration, precision):
    monkeypatch.setenv("DLRM_CACHE_DIR", str(compile_cache))
    folder = seal(declaration, tmp_path, precision=precision)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == expected_engine()
    for size in (1, 2, 77, 513, 1100):
        batch = random_batch(declaration, size, seed=size)
        fast, eager = scorer.logits(batch), scorer.reference_logits(batch)
        assert fast.shape == (size,)
        if precision == "fp32":
            assert np.abs(fast - eager).max() < 1e-5
        else:
            assert np.abs(probabilities(fast) - probabilities(eager)).max() < 2e-2
    assert scorer.logits(random_batch(declaration, 0)).shape == (0,)
    # A second worker of the host takes the library that is there.
    second = Scorer.load(folder)
    second.compile(folder, build=False)
    assert second.engine == expected_engine()


def fake_build(calls):
    def build(folder, target, precision):
        calls.append((folder, target, precision))
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
    started = []

    def start(*arguments, **settings):
        if started:
            raise BlockingIOError("Resource temporarily unavailable")
        started.append(popen(["sleep", "60"], **settings))
        return started[0]

    monkeypatch.setattr(dense_library, "compiler", lambda: "g++")
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "could not be compiled (Resource temporarily unavailable); scoring eagerly" in caplog.text
    assert started[0].returncode is not None  # the one that did start has not been left behind


def test_no_compiler_is_one_log_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dense_library, "compiler", lambda: None)
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "No C++ compiler on this host" in caplog.text


def test_a_damaged_package_is_dropped(tmp_path, caplog):
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    path = library_path(folder, scorer.declaration, "fp32")
    path.write_bytes(b"not a library")
    scorer.compile(folder, build=False)
    assert scorer.engine == "eager"
    assert "cannot be loaded" in caplog.text
    assert not path.exists()


def runner(name, met):
    def run(inputs):
        met.append((name, inputs[0].shape[0]))
        return [inputs[0].sum(1)]

    return run


@pytest.mark.parametrize("has_few", [True, False])
def test_each_size_runs_the_code_made_for_it(tmp_path, monkeypatch, has_few):
    folder = seal(mixed_shardings(), tmp_path)
    path = library_path(folder, mixed_shardings(), "fp32")
    path.touch()
    if has_few:
        few_samples_library(path).touch()
    met = []
    monkeypatch.setattr(
        dense_library, "_load", lambda found: runner("few" if "few" in found.name else "many", met)
    )
    dense = dense_library.compiled_dense(folder, mixed_shardings(), "fp32", build=False)
    most = FEW_SAMPLES["fp32"]
    for size in (1, most, most + 1):
        assert dense(torch.ones(size, 2), torch.ones(size, 3, 8)).shape == (size,)
    few = "few" if has_few else "many"
    assert met == [(few, 1), (few, most), ("many", most + 1)]


def test_damaged_code_for_few_samples_is_dropped(tmp_path, monkeypatch, caplog):
    folder = seal(mixed_shardings(), tmp_path)
    path = library_path(folder, mixed_shardings(), "fp32")
    path.touch()
    few_samples_library(path).write_bytes(b"not a library")
    load, met = dense_library._load, []
    monkeypatch.setattr(
        dense_library, "_load", lambda found: runner("many", met) if found == path else load(found)
    )
    dense = dense_library.compiled_dense(folder, mixed_shardings(), "fp32", build=False)
    assert dense(torch.ones(1, 2), torch.ones(1, 3, 8)).tolist() == [2]
    assert met == [("many", 1)]
    assert "cannot be loaded" in caplog.text
    assert not few_samples_library(path).exists()


def test_code_that_disagrees_is_not_used(tmp_path, monkeypatch, caplog):
    folder = seal(mixed_shardings(), tmp_path)
    scorer = Scorer.load(folder)
    wrong = lambda dense, pooled: pooled.sum(dim=(1, 2)) + 3  # noqa: E731
    monkeypatch.setattr(scorer_module, "compiled_dense", lambda *args, **kwargs: wrong)
    scorer.compile(folder)
    assert scorer.engine == "eager"
    assert "differ from eager ones" in caplog.text


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
    reference = scorer.reference_logits

    def watched(batch):
        threads.add(threading.current_thread())
        return reference(batch)

    monkeypatch.setattr(scorer, "reference_logits", watched)
    done = threading.Event()
    monkeypatch.setattr(scorer_module, "compiled_dense", lambda *args, **kwargs: eager_dense(scorer))
    monkeypatch.setattr(scorer_module.logger, "info", lambda *args: done.set())
    scorer.compile(folder, background=True)
    assert done.wait(30)
    assert scorer.engine == "compiled"
    assert threads == {threading.current_thread()}


def eager_dense(scorer):
    return torch.no_grad()(lambda dense, pooled: torch.from_numpy(scorer._interact_eagerly(dense, pooled)))


def _build_slowly(folder, target, precision):
    with (target.parent / "builds").open("a") as builds:
        builds.write("built\n")
    time.sleep(0.5)
    target.write_bytes(b"library")


def _worker(folder, precision, declaration_bytes):
    from dlrm_factory.config import parse_declaration

    logging.disable(logging.CRITICAL)
    dense_library.compiler = lambda: "g++"
    dense_library.build_in_subprocess = _build_slowly
    declaration = parse_declaration(declaration_bytes)
    assert dense_library._build_once(folder, library_path(folder, declaration, precision), precision)


@pytest.mark.multiprocess
def test_one_process_builds_and_the_others_wait(tmp_path):
    from dlrm_factory.config import dump_declaration

    declaration = mixed_shardings()
    folder = seal(declaration, tmp_path)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_worker, args=(folder, "fp32", dump_declaration(declaration)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert (cache_folder() / "builds").read_text() == "built\n"


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
