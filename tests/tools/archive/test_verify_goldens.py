"""Golden requests and figures that an archive is verified with, and that it carries."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.archive.staging import stage
from dlrm_factory.tools.archive.verification import verify_weights
from dlrm_factory.weights.seal import read_seal
from dlrm_factory.weights.sealed import SealedWeights, seal_folder


def goldens_of(folder):
    return json.loads((folder / "goldens.json").read_bytes())["requests"]


def test_rows_of_the_clicks_become_goldens(trained, tmp_path):
    stage(trained, tmp_path / "staged")
    goldens = goldens_of(tmp_path / "staged")
    assert [golden["real"] for golden in goldens] == [True] * 24 + [False] * 16
    assert max(abs(golden["expected"] - golden["trained"]) for golden in goldens) < 0.05
    assert any(golden["expected"] != golden["trained"] for golden in goldens)


def test_what_training_reported_is_sealed(trained, tmp_path):
    stage(trained, tmp_path / "staged")
    training = read_seal(tmp_path / "staged").training
    assert 0.5 < float(training["held_out_auc"]) < 1
    assert "golden_rows" not in training


def test_goldens_are_replayed(trained, tmp_path):
    stage(trained, tmp_path / "staged")
    found = verify_weights(tmp_path / "staged").goldens
    assert (found.requests, found.real) == (40, 24)
    assert found.largest["eager"] < 1e-5
    assert 0 < found.mean_drift < found.max_drift < 0.05
    (tmp_path / "staged" / "goldens.json").unlink()
    seal_folder(tmp_path / "staged")
    assert verify_weights(tmp_path / "staged").goldens is None


def test_goldens_that_are_not_reproduced_fail(trained, tmp_path):
    stage(trained, tmp_path / "staged")
    path = tmp_path / "staged" / "goldens.json"
    content = json.loads(path.read_bytes())
    content["requests"][7]["expected"] += 0.001
    path.write_text(json.dumps(content))
    seal_folder(tmp_path / "staged")
    with pytest.raises(WeightsError, match=r"golden request 8 of 40 \(alone\) gives"):
        verify_weights(tmp_path / "staged")


def test_a_bound_on_the_drift_of_goldens(trained, tmp_path):
    stage(trained, tmp_path / "staged")
    found = replace(verify_weights(tmp_path / "staged"), engines=())
    found.check(1, found.goldens.mean_drift)
    with pytest.raises(WeightsError, match=r"40 golden requests are .* allow more with --max-drift"):
        found.check(1, found.goldens.mean_drift / 2)


def test_the_figures_are_sealed_in_the_archive(trained, tmp_path):
    found = archive_model(trained, tmp_path / "dlrm", archive_format="directory", max_auc_loss=1)
    evaluation = SealedWeights(tmp_path / "dlrm").seal.evaluation
    assert evaluation == found.evaluation()
    assert evaluation.engines["eager"].auc == found.engines[0].auc
    assert evaluation.samples == found.samples


def test_a_verified_archive_is_reproducible(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a.mar", "b.mar"):
        archive_model(trained, tmp_path / name, max_auc_loss=1)
    assert (tmp_path / "a.mar").read_bytes() == (tmp_path / "b.mar").read_bytes()
