"""Metrics of a worker: what it knows of itself, and where its files lie."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path

import pytest
from support.monitoring import DECLARATION, DenseScorer, counted_service, reference_of

from dlrm_factory.errors import WeightsError
from dlrm_factory.host.worker_file import worker_folder
from dlrm_factory.monitoring.metrics_file import read_metrics_file
from dlrm_factory.monitoring.reference import write_reference
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from handler.metrics import count_metrics, created_at

FACTS = {"engine": lambda: "compiled", "goldens": 16, "golden_difference": 1e-6, "load_seconds": 2.5}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


def count(archive: Path) -> DLRMService:
    service = DLRMService(DenseScorer(), model_name="shop", model_version="2")
    manifest = {"createdOn": "30/11/2026 10:00:00"}
    count_metrics(service, DECLARATION, archive, manifest=manifest, **FACTS)
    return service


def test_a_worker_tells_of_itself_and_compares_with_the_archives_reference(archive: Path) -> None:
    write_reference(reference_of(2000), archive)
    count(archive).handle([Request(b'{"instances": [{}]}')])
    (path,) = worker_folder(str(archive)).glob("*.metrics")
    reading = read_metrics_file(path)
    found = {place.family.name: reading.family(place)[:, 0].tolist() for place in reading.head.families}
    assert (found["dlrm_goldens"], found["dlrm_load_duration_seconds"]) == ([16.0], [2.5])
    assert found["dlrm_workers"] == [0.0, 1.0]
    assert found["dlrm_drift_reference_samples"] == [2000.0]
    assert found["dlrm_archive_created_timestamp_seconds"] == [datetime(2026, 11, 30, 10).timestamp()]
    assert reading.head.model_dir == str(archive)
    assert reading.head.drift is not None


def test_a_damaged_reference_is_an_error(archive: Path) -> None:
    (archive / "reference.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"reference\.json"):
        count(archive)


def test_without_a_folder_to_write_to_requests_are_answered_all_the_same(
    archive: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(archive / "gone"))
    with caplog.at_level(logging.WARNING):
        (answer,) = count(archive).handle([Request(b'{"instances": [{}]}')])
    assert answer.status == 200
    (record,) = caplog.records
    assert "not counted" in record.getMessage()


def test_files_of_a_version_that_is_gone_are_removed(archive: Path, tmp_path: Path) -> None:
    gone, kept = tmp_path / "gone", tmp_path / "kept"
    kept.mkdir()
    for folder, pid in ((gone, 4_000_000), (kept, 4_000_001), (gone, os.getpid())):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda pid=pid: pid)
            counted_service(worker_folder(str(folder)), model_dir=str(folder))
    count(archive)
    left = {path.name for path in worker_folder(str(archive)).parent.glob("*/*")}
    assert {"4000001.metrics", "4000001.scores", f"{os.getpid()}.metrics"} <= left
    assert not any(name.startswith("4000000.") for name in left)


@pytest.mark.parametrize("manifest", [None, {}, {"createdOn": "yesterday"}])
def test_an_archive_may_not_tell_its_time(manifest: dict[str, str] | None) -> None:
    assert created_at(manifest) == 0.0
