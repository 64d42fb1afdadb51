from __future__ import annotations

import json

import msgspec
import pytest
from typer.testing import CliRunner

from dlrm_factory.archive import archive_model
from dlrm_factory.checkpoint import open_checkpoint
from dlrm_factory.cli.main import app
from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.training import train
from dlrm_factory.verification import verify_weights
from dlrm_factory.weights import seal_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`tiny` with int8 and int4 tables, trained for a moment."""
    dtypes = ("int8", "fp16", "int4")
    tables = [
        msgspec.structs.replace(table, dtype=dtype)
        for table, dtype in zip(tiny().tables, dtypes, strict=True)
    ]
    path = tmp_path_factory.mktemp("verify") / "c.safetensors"
    train(msgspec.structs.replace(tiny(), tables=tables), output=path, rows=4000)
    return path


@pytest.fixture
def sealed(trained, tmp_path):
    seal_weights(open_checkpoint(trained), tmp_path / "sealed")
    return tmp_path / "sealed"


def test_held_out_samples_travel_with_the_checkpoint(trained):
    held_out = open_checkpoint(trained).held_out
    assert held_out is not None
    assert 300 < len(held_out.batch) < 500
    assert set(held_out.labels.tolist()) == {0, 1}


def test_what_serving_loses_is_reported(sealed):
    found = verify_weights(sealed)
    assert found.tables == 3
    assert found.samples > 300
    (eager,) = found.engines  # `tiny` is not compiled
    assert 0 < eager.max_difference < 0.1
    assert eager.mean_difference < eager.max_difference
    assert abs(eager.auc_loss - (found.float_auc - eager.auc)) < 1e-12
    assert abs(eager.auc_loss) < 0.01


def test_a_bound_on_the_loss(sealed):
    found = verify_weights(sealed)
    found.check(0.5)
    (drift,) = found.engines
    with pytest.raises(WeightsError, match="eager scoring loses"):
        found.check(drift.auc_loss - 1e-6)


def test_tables_that_score_otherwise_do_not_pass(sealed, trained):
    # The dense weights of another seed: what is sealed is not what was trained.
    other = trained.with_name("other.safetensors")
    options = msgspec.structs.replace(tiny().training, seed=99)
    train(msgspec.structs.replace(tiny(), training=options), output=other, rows=500)
    seal_weights(open_checkpoint(other), sealed.parent / "other")
    (sealed / "dense.safetensors").write_bytes((sealed.parent / "other" / "dense.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"loses .* AUC against the trained model"):
        verify_weights(sealed).check(0.0005)


def test_a_flipped_bit_is_found(sealed):
    path = sealed / "tables.bin"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        verify_weights(sealed)


class TestCommand:
    def test_an_archive(self, trained, tmp_path):
        archive_model(trained, tmp_path / "dlrm.mar")
        done = CliRunner().invoke(
            app, ["verify", str(tmp_path / "dlrm.mar"), "--json", "--max-auc-loss", "1"]
        )
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["tables"] == 3
        assert found["engines"][0]["engine"] == "eager"

    def test_as_a_table(self, sealed):
        done = CliRunner().invoke(app, ["verify", str(sealed), "--max-auc-loss", "1"])
        assert done.exit_code == 0, done.output
        assert "3 tables agree with their checksums" in done.stdout
        assert "as trained" in done.stdout

    def test_the_archive_step_enforces_the_bound(self, trained, tmp_path, monkeypatch):
        from dlrm_factory import verification

        def worse(scorer, held_out):
            return verification.EngineDrift(
                engine="eager", auc=0.5, log_loss=1, auc_loss=0.2, mean_difference=0, max_difference=0
            )

        monkeypatch.setattr(verification, "_drift", worse)
        done = CliRunner().invoke(app, ["archive", str(trained), "--output", str(tmp_path / "dlrm.mar")])
        assert isinstance(done.exception, WeightsError)
        assert "loses 0.20000 AUC" in str(done.exception)
        assert list(tmp_path.iterdir()) == []
