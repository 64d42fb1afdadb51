"""`dlrm verify`, and the step of `dlrm archive` that verifies."""

from __future__ import annotations

import json
from dataclasses import replace

from typer.testing import CliRunner

from dlrm_factory.errors import WeightsError
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive import verification
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.cli.main import app
from dlrm_factory.weights.seal import read_seal, write_seal


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
        assert found["goldens"]["requests"] == 40
        assert found["files"] > 100  # code too
        assert found["versions"] == found["sealed_versions"]

    def test_other_versions_are_a_warning(self, sealed):
        seal = read_seal(sealed)
        versions = {**seal.versions, "torch": "1.2.3", "numpy": "9.9"}
        del versions["torchrec"]
        write_seal(sealed, list(seal.files), versions=versions)
        done = CliRunner().invoke(app, ["verify", str(sealed), "--max-auc-loss", "1"])
        assert done.exit_code == 0, done.output
        assert "warning: made with torch 1.2.3, but " in done.stdout
        assert "warning: made with torchrec (none), but " in done.stdout
        assert "no golden requests travel with it" in done.stdout

    def test_as_a_table(self, sealed):
        done = CliRunner().invoke(app, ["verify", str(sealed), "--max-auc-loss", "1"])
        assert done.exit_code == 0, done.output
        assert "5 files agree with their seal, 3 tables agree with their checksums" in done.stdout
        assert "as trained" in done.stdout

    def test_a_loss_within_chance(self, trained, tmp_path, monkeypatch):
        measured = verification._drift

        def by_chance(*arguments):
            return replace(
                measured(*arguments),
                auc_loss=0.002,
                auc_loss_low=-0.001,
                auc_loss_high=0.005,
                auc_loss_is_chance=True,
            )

        monkeypatch.setattr(verification, "_drift", by_chance)
        path = str(tmp_path / "dlrm.mar")
        done = CliRunner().invoke(app, ["archive", str(trained), "--output", path])
        assert done.exit_code == 0, done.output
        said = "over the bound, but within chance (95 % interval -0.00100 to +0.00500)"
        assert said in done.stdout
        assert "answers tie" in done.stdout
        done = CliRunner().invoke(app, ["verify", path])
        assert done.exit_code == 0, done.output
        assert said in done.stdout
        assert "probabilities sent as float32 (Arrow, binary KServe): " in done.stdout
        for command in (["archive", str(trained), "--output", path, "--force"], ["verify", path]):
            done = CliRunner().invoke(app, [*command, "--json"])
            found = json.loads(done.stdout)
            assert said in found["remarks"][0]
            assert found["engines"][0]["auc_verdict"] == "chance"
            assert found["engines"][0]["auc_loss_low"] == -0.001
            assert (found["max_auc_loss"], found["strict"]) == (0.0005, False)
            done = CliRunner().invoke(app, [*command, "--strict"])
            assert isinstance(done.exception, WeightsError)
            assert "at most 0.0005 is allowed, which is within chance" in str(done.exception)
        done = CliRunner().invoke(app, ["verify", path, "--max-auc-loss", "0.01", "--json", "--strict"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["engines"][0]["auc_verdict"] == "within"

    def test_the_archive_step_enforces_the_bound(self, trained, tmp_path, monkeypatch):
        def worse(engine, held_out, logits):
            return verification.EngineDrift(
                engine="eager",
                auc=0.5,
                log_loss=1,
                auc_loss=0.2,
                auc_loss_low=0.1,
                auc_loss_high=0.3,
                auc_loss_is_chance=False,
                mean_difference=0,
                max_difference=0,
                ties=0,
                float32_auc_loss=0.2,
                float32_ties=0,
            )

        monkeypatch.setattr(verification, "_drift", worse)
        done = CliRunner().invoke(app, ["archive", str(trained), "--output", str(tmp_path / "dlrm.mar")])
        assert isinstance(done.exception, WeightsError)
        assert "loses 0.20000 AUC" in str(done.exception)
        assert list(tmp_path.iterdir()) == []

    def test_the_archive_step_replays_the_goldens(self, trained, tmp_path, monkeypatch):
        command = ["archive", str(trained), "--output", str(tmp_path / "dlrm.mar"), "--max-auc-loss", "1"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "40 golden requests reproduced, the largest difference " in done.stdout
        outputs = Scorer.outputs
        monkeypatch.setattr(
            Scorer, "outputs", lambda self, batch, shared=None: outputs(self, batch) * len(batch)
        )
        done = CliRunner().invoke(app, [*command, "--force"])
        assert isinstance(done.exception, WeightsError)
        assert "golden request 1 of 40 (alone) gives" in str(done.exception)
        assert [path.name for path in tmp_path.iterdir()] == ["dlrm.mar"]
