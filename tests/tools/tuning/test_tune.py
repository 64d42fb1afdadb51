from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from dlrm_factory.config import DLRMDeclaration, TrainingOptions, read_declaration, tiny
from dlrm_factory.errors import ConfigError, DataError, DLRMError, WeightsError
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.cli.tune import seconds_of
from dlrm_factory.tools.training import Progress
from dlrm_factory.tools.training.optimizers import MAX_ADAM_VALUES
from dlrm_factory.tools.tuning import Settings, draw_tuning, tune
from dlrm_factory.tools.tuning.space import Space, prepared

pytest.importorskip("optuna")

ROWS = 1500


def declared(**training) -> DLRMDeclaration:
    base = tiny()
    return msgspec.structs.replace(base, training=TrainingOptions(label="click", batch_size=256, **training))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Two calls on one study; what each reported, and their output."""
    folder = tmp_path_factory.mktemp("searched")
    torch.set_num_threads(1)
    output = folder / "tuned.yaml"
    reports = [tune(declared(), output=output, seconds=600, rows=ROWS, trials=n) for n in (2, 3)]
    return reports, output


def test_the_first_trial_has_the_declared_settings_and_the_best_is_written(searched):
    (report, _), _ = searched
    assert [trial.number for trial in report.trials] == [0, 1]
    assert report.declared is not None
    assert report.declared.number == 0
    assert report.declared.settings == Settings.of(declared())
    assert report.best == report.ranked()[0]
    assert 0.08 < report.validation_rows / (report.training_rows + report.validation_rows) < 0.12


def test_another_call_goes_on_with_other_trials(searched):
    (first, second), output = searched
    assert second.trials[:2] == first.trials
    assert [trial.number for trial in second.trials] == [0, 1, 2, 3, 4]
    settings = [trial.settings for trial in second.trials]
    assert all(settings.count(each) == 1 for each in settings)
    written = read_declaration(output)
    assert Settings.of(written) == second.best.settings
    assert written == second.best.settings.applied_to(prepared(declared()))
    assert written.training.refit
    assert written.dense_arch_layer_sizes[-1] == written.embedding_dim


def test_the_best_is_what_training_with_it_reaches_on_the_validation_rows(searched, tmp_path):
    from dlrm_factory.tools.training import train

    (_, report), output = searched
    trained = train(read_declaration(output), output=tmp_path / "c.safetensors", rows=ROWS)
    assert max(e.validation_auc for e in trained.history) == report.best.validation_auc
    assert trained.refit_epochs == report.best.epochs


def test_a_study_of_another_declaration_or_other_data_is_refused(searched, tmp_path):
    _, output = searched
    study = output.with_name("tuned.yaml.study")
    for declaration, rows, message in (
        (declared(seed=2), ROWS, "is a study of another declaration"),
        (declared(), ROWS + 1, "is a study of other data"),
    ):
        with pytest.raises(DataError, match=message):
            tune(declaration, output=tmp_path / "x.yaml", study=study, seconds=60, rows=rows, trials=1)
    assert not (tmp_path / "x.yaml").exists()


def test_an_interrupted_trial_is_tried_again_first(tmp_path):
    study, output = tmp_path / "s", tmp_path / "x.yaml"

    def stop(progress: Progress) -> None:
        if progress.stage == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(declared(), output=output, study=study, seconds=60, rows=ROWS, trials=1, observe=stop)
    assert not output.exists()
    report = tune(declared(), output=output, study=study, seconds=60, rows=ROWS, trials=1)
    assert [trial.state for trial in report.trials] == ["unfinished", "complete"]
    assert report.trials[0].settings == report.trials[1].settings == Settings.of(declared())


def test_no_trial_in_time_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no trial was over within 0 seconds; give more time"):
        tune(declared(), output=tmp_path / "x.yaml", seconds=0.01, rows=ROWS)


def test_a_trial_that_diverges_is_told_and_the_search_goes_on(tmp_path):
    diverging = declared(
        sparse_optimizer="sgd", sparse_learning_rate=1e30, learning_rate=1e30, optimizer="sgd"
    )
    with pytest.raises(DataError, match=r"no trial was over[^\n]*\n  trial 0: .*the training loss became"):
        tune(diverging, output=tmp_path / "x.yaml", seconds=60, rows=ROWS, trials=1)


def test_the_picture(searched, tmp_path):
    (_, report), _ = searched
    draw_tuning(report, tmp_path / "p.svg")
    assert "</svg>" in (tmp_path / "p.svg").read_text()
    with pytest.raises(WeightsError, match="cannot draw this format"):
        draw_tuning(report, tmp_path / "p.gif")


def test_the_space_is_about_what_is_declared():
    space = Space(declared(epochs=5))
    assert space.optimizers == ["adam", "row_wise_adagrad"]
    assert space.max_epochs == 10
    assert space.dims == [4, 8, 16]
    assert Space.settings(Space.parameters(space.declared)) == space.declared
    large = declared()
    table = msgspec.structs.replace(large.tables[0], num_embeddings=MAX_ADAM_VALUES)
    large = msgspec.structs.replace(large, tables=[table, *large.tables[1:]])
    assert Space(large).optimizers == ["row_wise_adagrad"]
    projection = msgspec.structs.replace(
        declared(),
        architecture="dlrm_projection",
        interaction_branch1_layer_sizes=[24],
        interaction_branch2_layer_sizes=[24],
    )
    assert 16 not in Space(projection).dims


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d", 86400)])
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", "0m", "half an hour", "-5m"])
def test_no_durations(text):
    with pytest.raises(DLRMError, match="is no duration; write a number and s, m, h or d"):
        seconds_of(text)


def test_the_command(tmp_path, searched):
    _, output = searched
    here = Path(tmp_path / "t.yaml")
    study = tmp_path / "s"
    study.write_bytes(output.with_name("tuned.yaml.study").read_bytes())
    config = tmp_path / "m.yaml"
    from dlrm_factory.config import dump_declaration

    config.write_text(dump_declaration(declared()))
    arguments = [
        "tune",
        str(config),
        "--for",
        "1m",
        "--rows",
        str(ROWS),
        "--trials",
        "1",
        "--study",
        str(study),
    ]
    done = CliRunner().invoke(app, [*arguments, "-o", str(here), "--image", str(tmp_path / "p.svg")])
    assert done.exit_code == 0, done.output
    assert "trial 0, as declared" in done.stdout
    assert "6 trials: " in done.stdout
    assert f"wrote {here}" in done.stdout
    assert (tmp_path / "p.svg").is_file()
    done = CliRunner().invoke(app, [*arguments, "-o", str(here), "--json"])
    found = json.loads(done.stdout)
    assert len(found["trials"]) == 7
    assert found["output"] == str(here)
    done = CliRunner().invoke(app, [*arguments, "-o", str(config)])
    assert isinstance(done.exception, ConfigError)
