"""AUC on generated clicks, of which the best possible is known. A DLRM should come near."""

from __future__ import annotations

import pytest

from dlrm_factory.config import tiny
from dlrm_factory.tools.training import train


@pytest.mark.slow
def test_98_percent_of_the_way_to_the_best_auc(tmp_path):
    report = train(tiny(), output=tmp_path / "tiny.safetensors")
    assert report.held_out_auc is not None
    assert report.best_auc is not None
    assert report.held_out_rows > 20_000
    assert 0.98 <= (report.held_out_auc - 0.5) / (report.best_auc - 0.5) < 1.005
    # Not only the order: the probabilities are as good.
    assert report.held_out_log_loss < report.best_log_loss + 0.005
