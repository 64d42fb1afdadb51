"""Workers of a host follow the verdict of the first one, with a library that is built once."""

from __future__ import annotations

import shutil
import threading
from types import SimpleNamespace

import msgspec
import pytest
import torch
from support.batches import random_batch
from support.compiled import checksum, seal, verdicts
from support.sharding import mixed_shardings

from dlrm_factory.batch import Embeddings
from dlrm_factory.compiled import dense_library, library_path
from dlrm_factory.compiled.build import few_samples_library, is_built
from dlrm_factory.compiled.dense_library import FEW_SAMPLES
from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import add_goldens
from dlrm_factory.scorer import Scorer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DLRM_CACHE_DIR", str(folder))
    return folder


def fake_build(calls):
    def build(folder, target, precision, seconds):
        calls.append(seconds)
        return "no such thing"

    return build


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


def worker(folder, **options):
    """A worker's scorer, compiled as the verdict says."""
    scorer = Scorer.load(folder)
    scorer.compile(folder, **options)
    return scorer


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
