"""The staged folder, and the rules for what it may replace."""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import ServingOptions, read_declaration, tiny
from dlrm_factory.errors import ArchiveError, WeightsError
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive import reading, staging
from dlrm_factory.tools.archive.model_config import model_config
from dlrm_factory.tools.archive.staging import archiver_command, stage


def test_a_checkpoint_is_staged_in_the_layout_of_an_archive(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    stage(checkpoint, tmp_path / "staged", progress=lambda done, total: seen.append((done, total)))
    assert {path.name for path in (tmp_path / "staged").iterdir()} == {
        "declaration.yaml",
        "dense.safetensors",
        "dlrm_factory",
        "dlrm_handler.py",
        "goldens.json",
        "handler",
        "model-config.yaml",
        "seal.json",
        "tables.bin",
    }
    assert read_declaration(tmp_path / "staged/declaration.yaml") == tiny()
    assert seen[-1][0] == seen[-1][1] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["staged"]


def test_a_staged_folder_scores(checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "staged")
    scorer = Scorer.load(tmp_path / "staged")
    batch = FeatureBatch(
        dense=np.zeros((2, 2), np.float32),
        lengths=np.ones((3, 2), np.int32),
        values=np.arange(6, dtype=np.int64),
    )
    logits = scorer.logits(batch)
    assert logits.shape == (2,)
    assert np.isfinite(logits).all()
    assert logits[0] != logits[1]


def test_model_config_says_what_the_declaration_says() -> None:
    text = model_config(tiny())
    assert yaml.safe_load(text) == {
        "minWorkers": 1,
        "maxWorkers": 4,
        "batchSize": 64,
        "maxBatchDelay": 1,
        "responseTimeout": 60,
        "startupTimeout": 600,
        "deviceType": "cpu",
    }
    assert all("#" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("serving", "size", "delay"),
    [
        (ServingOptions(), 64, 1),
        (ServingOptions(profile="latency"), 1, 1),
        (ServingOptions(profile="latency", batch_size=8), 8, 1),
        (ServingOptions(profile="throughput", batch_size=1), 1, 1),
        (ServingOptions(max_batch_delay_ms=5), 64, 5),
        (ServingOptions(profile="latency", batch_size=16, max_batch_delay_ms=2), 16, 2),
    ],
)
def test_what_is_declared_wins_over_the_profile(serving: ServingOptions, size: int, delay: int) -> None:
    config = yaml.safe_load(model_config(msgspec.structs.replace(tiny(), serving=serving)))
    assert (config["batchSize"], config["maxBatchDelay"]) == (size, delay)


def test_sealed_weights_are_staged_again_without_a_copy(checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "first")
    stage(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first/tables.bin").samefile(tmp_path / "second/tables.bin")
    assert read_declaration(tmp_path / "second/declaration.yaml") == tiny()


def test_sealed_weights_are_copied_where_the_disk_cannot_link(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    stage(checkpoint, tmp_path / "first")
    monkeypatch.setattr(reading.os, "link", no_link)
    stage(tmp_path / "first", tmp_path / "second")
    first, second = tmp_path / "first/tables.bin", tmp_path / "second/tables.bin"
    assert not first.samefile(second)
    assert first.read_bytes() == second.read_bytes()


def test_an_empty_folder_is_used_and_a_staged_one_replaced_on_request(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "staged"
    folder.mkdir()
    stage(checkpoint, folder)
    (folder / "left_over.py").touch()
    with pytest.raises(ArchiveError, match="exists; give --force"):
        stage(checkpoint, folder)
    stage(checkpoint, folder, force=True)
    assert not (folder / "left_over.py").exists()


def test_a_folder_that_is_not_ours_is_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ArchiveError, match="is not empty and was not made by dlrm"):
        stage(checkpoint, mine, force=True)
    with pytest.raises(ArchiveError, match="is not a folder"):
        stage(checkpoint, mine / "holiday.jpg", force=True)
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(ArchiveError, match="is not a folder"):
        stage(checkpoint, tmp_path / "link", force=True)
    assert (mine / "holiday.jpg").read_bytes() == b"x"


def test_a_failure_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staging, "seal_weights", full)
    with pytest.raises(ArchiveError, match="staged: cannot be written: No space left on device"):
        stage(checkpoint, tmp_path / "staged")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such checkpoint"):
        stage(tmp_path / "none.safetensors", tmp_path / "staged")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="is not a safetensors checkpoint"):
        stage(tmp_path / "bad.safetensors", tmp_path / "staged")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no such seal of the weights"):
        stage(tmp_path / "empty", tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_the_command_names_the_staged_files() -> None:
    command = archiver_command(
        Path("my stage"), model_name="dlrm", version="1.0", export_path=Path("model_store")
    )
    words = shlex.split(command)
    assert words[0] == "torch-model-archiver"
    assert words[words.index("--handler") + 1] == "my stage/dlrm_handler.py"
    assert words[words.index("--extra-files") + 1] == "my stage"


@pytest.mark.parametrize("name", ["a,b", "a*", "a[1]", "a?"])
def test_a_folder_that_the_archiver_would_misread_is_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match="reads , "):
        archiver_command(Path(name), model_name="dlrm", version="1.0", export_path=Path("store"))


def test_the_folder_that_the_archiver_deletes_first_is_refused() -> None:
    with pytest.raises(ArchiveError, match="deletes this very folder"):
        archiver_command(
            Path(tempfile.gettempdir()) / "dlrm", model_name="dlrm", version="1.0", export_path=Path("store")
        )
