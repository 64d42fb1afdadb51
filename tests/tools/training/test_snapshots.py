from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.ranks import Interrupted, interrupted_at

from dlrm_factory.config import DLRMDeclaration, TrainingOptions, tiny
from dlrm_factory.errors import DataError, WeightsError
from dlrm_factory.tools.training import TrainingReport, train

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned

ROWS = 1200


def declared(*shardings: str, **training) -> DLRMDeclaration:
    base = tiny()
    tables = [
        msgspec.structs.replace(table, sharding=sharding)
        for table, sharding in zip(base.tables, shardings or ("auto",) * 3, strict=True)
    ]
    options = msgspec.structs.replace(OPTIONS, **({"batch_size": 64, "epochs": 2} | training))
    return msgspec.structs.replace(base, tables=tables, training=options)


def break_off(declaration: DLRMDeclaration, folder: Path, *, at: int, every: int | None) -> None:
    with pytest.raises(Interrupted):
        train(
            declaration,
            output=folder / "never.safetensors",
            rows=ROWS,
            checkpoint_dir=folder / "snapshots",
            checkpoint_every=every,
            observe=interrupted_at(at),
        )
    assert not (folder / "never.safetensors").exists()


def resume(declaration: DLRMDeclaration, folder: Path, every: int | None = None, **options) -> TrainingReport:
    return train(
        declaration,
        output=folder / "resumed.safetensors",
        rows=ROWS,
        checkpoint_dir=folder / "snapshots",
        checkpoint_every=every,
        resume=True,
        **options,
    )


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Our own warnings."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("dlrm_factory")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").iterdir())


def assert_equal(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


CASES = {
    "defaults": {},
    "all at once": {
        "optimizer": "adagrad",
        "sparse_optimizer": "adagrad",
        "warmup_steps": 4,
        "learning_rate_decay": "cosine",
        "gradient_clipping": 0.5,
        "evaluate_every": 5,
    },
    "early stopping": {
        "early_stopping": 5,
        "evaluate_every": 3,
        "sparse_learning_rate": 0.5,
    },  # 18 steps at least
    "adam, which is not fused on CPU": {"sparse_optimizer": "adam", "sparse_learning_rate": 0.01},
    "sgd": {"optimizer": "sgd", "sparse_optimizer": "sgd", "sparse_learning_rate": 1.0},
}


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
def test_a_run_that_was_broken_off_ends_with_the_same_weights_bit_by_bit(tmp_path, options):
    shardings = ("column_wise", "row_wise", "data_parallel")
    declaration = declared(*shardings, **options)
    whole = train(declaration, output=tmp_path / "whole.safetensors", rows=ROWS)
    break_off(declaration, tmp_path, at=14, every=7)
    resumed = resume(declaration, tmp_path, every=7)
    assert_equal(tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors")
    assert (resumed.steps, resumed.kept_step, resumed.stopped_early) == (
        whole.steps,
        whole.kept_step,
        whole.stopped_early,
    )
    assert [e.held_out_auc for e in resumed.history] == [e.held_out_auc for e in whole.history]


def test_the_newest_two_are_kept_and_nothing_half_written(tmp_path):
    declaration = declared()
    train(
        declaration,
        output=tmp_path / "c.safetensors",
        rows=ROWS,
        checkpoint_dir=tmp_path / "snapshots",
        checkpoint_every=10,
    )
    assert names(tmp_path) == ["step-000000000030", "step-000000000034"]
    files = {path.suffix for path in (tmp_path / "snapshots").rglob("*") if path.is_file()}
    assert files == {".safetensors", ".json"}  # and so no pickle


def test_another_plan_takes_over_weights_and_state(tmp_path):
    before = declared("table_wise", "row_wise", "column_wise", sparse_optimizer="adagrad")
    after = declared("column_wise", "data_parallel", "table_wise", sparse_optimizer="adagrad")
    train(before, output=tmp_path / "whole.safetensors", rows=ROWS)
    break_off(before, tmp_path, at=20, every=10)
    resume(after, tmp_path)
    whole, resumed = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "resumed.safetensors")
    for key, weight in whole.items():
        assert torch.allclose(resumed[key].float(), weight.float(), atol=1e-5), key


def test_row_wise_state_of_column_shards_is_their_mean_in_a_whole_table(tmp_path, caplog):
    break_off(declared("column_wise", "column_wise", "column_wise"), tmp_path, at=18, every=None)
    (newest,) = (tmp_path / "snapshots").glob("step-*")
    states = {}
    for path in newest.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            states |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    halves = [states[f"tables/t_user_id/sum/columns-{a}-{a + 4}"] for a in (0, 4)]
    assert not torch.equal(*halves)
    shutil.copytree(tmp_path / "snapshots", tmp_path / "again" / "snapshots")

    found = _sums_after_loading(declared("table_wise", "table_wise", "table_wise"), tmp_path)
    assert torch.allclose(found, (halves[0] + halves[1]) / 2)
    assert said(caplog) == []


def _sums_after_loading(declaration: DLRMDeclaration, folder: Path) -> torch.Tensor:
    from dlrm_factory.tools.data.source import generate_clicks
    from dlrm_factory.tools.training.loop import TrainingData, TrainingRun
    from dlrm_factory.tools.training.objective import make_objective
    from dlrm_factory.tools.training.snapshots import Snapshots

    clicks = generate_clicks(declaration, rows=ROWS, write_to=None, observe=lambda progress: None)
    data = TrainingData(
        clicks=clicks.dataset,
        training=clicks.training,
        validation=clicks.validation,
        held_out=clicks.held_out,
    )
    run = TrainingRun(make_objective(declaration), data)
    Snapshots(folder / "snapshots").load(run)
    (state,) = (s for shard, s in run.objective.optimizers.table_states() if shard.table == "t_user_id")
    return state["sum"]


def test_a_table_cut_anew_says_that_its_state_starts_from_the_mean(tmp_path, caplog):
    break_off(declared("table_wise", "table_wise", "table_wise"), tmp_path, at=18, every=None)
    resume(declared("column_wise", "table_wise", "table_wise"), tmp_path)
    cut = "tables/t_user_id/sum: the snapshot's table was cut at columns 0-8; columns {} start from the mean over them"
    assert said(caplog) == [cut.format("0-4"), cut.format("4-8")]


def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog):
    declaration = declared()
    train(declaration, output=tmp_path / "whole.safetensors", rows=ROWS)
    break_off(declaration, tmp_path, at=20, every=10)
    assert names(tmp_path) == ["step-000000000010"]
    good = tmp_path / "snapshots" / "step-000000000010"
    bad = tmp_path / "snapshots" / "step-000000000020"
    shutil.copytree(good, bad)
    file = next(bad.glob("*.safetensors"))
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "snapshots" / ".partial-step-000000000030").mkdir()
    resume(declaration, tmp_path)
    assert f"{file}: has {size - 1} of its {size} bytes; passed over" in said(caplog)
    assert_equal(tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors")


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(tmp_path):
    train(declared(epochs=3), output=tmp_path / "whole.safetensors", rows=ROWS)
    train(
        declared(epochs=1),
        output=tmp_path / "short.safetensors",
        rows=ROWS,
        checkpoint_dir=tmp_path / "snapshots",
    )
    report = resume(declared(epochs=3), tmp_path)
    assert len(report.history) == 3
    assert_equal(tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors")


def test_another_declaration_is_refused_with_what_differs(tmp_path):
    break_off(declared(), tmp_path, at=18, every=None)
    other = declared(learning_rate=0.5, optimizer="sgd", epochs=9, early_stopping=3, validation=0.2)
    other = msgspec.structs.replace(other, over_arch_layer_sizes=[32, 1])
    with pytest.raises(WeightsError) as caught:
        resume(other, tmp_path)
    message = str(caught.value)
    assert "is a snapshot of another declaration" in message
    assert "$.over_arch_layer_sizes[0]: 16 in the snapshot, 32 here" in message
    assert "$.training.learning_rate: 0.001 in the snapshot, 0.5 here" in message
    assert "$.training.optimizer: 'adam' in the snapshot, 'sgd' here" in message
    assert "epochs" not in message
    assert "early_stopping" not in message
    assert "$.training.validation: 0.0 in the snapshot, 0.2 here" in message


def test_other_data_is_refused(tmp_path):
    break_off(declared(), tmp_path, at=18, every=None)
    with pytest.raises(
        DataError, match=r"was trained on other data: 1,0\d\d training rows, .*; here is 1,0\d\d"
    ):
        train(
            declared(),
            output=tmp_path / "c.safetensors",
            rows=ROWS - 1,
            checkpoint_dir=tmp_path / "snapshots",
            resume=True,
        )


def test_a_folder_that_is_in_use_or_empty_is_refused_before_reading_data(tmp_path):
    folder = tmp_path / "snapshots"
    with pytest.raises(WeightsError, match="holds no whole snapshot to go on from"):
        resume(declared(), tmp_path)
    break_off(declared(), tmp_path, at=18, every=None)
    with pytest.raises(WeightsError, match="holds snapshots of an earlier run; add --resume"):
        train(declared(), output=tmp_path / "c.safetensors", rows=ROWS, checkpoint_dir=folder)
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        train(declared(), output=tmp_path / "c.safetensors", checkpoint_dir=tmp_path / "file" / "x")
    with pytest.raises(WeightsError, match="nothing to go on from"):
        train(declared(), output=tmp_path / "c.safetensors", resume=True)


def test_the_index_is_plain_json(tmp_path):
    break_off(declared(), tmp_path, at=18, every=None)
    (index,) = (tmp_path / "snapshots").glob("*/snapshot.json")
    found = json.loads(index.read_text())
    assert (found["format"], found["world_size"]) == (1, 1)
    assert (found["state"]["epoch"], found["state"]["row"], found["state"]["step"]) == (1, 0, 17)
    assert found["data"]["training_rows"] + found["data"]["held_out_rows"] == ROWS
    assert found["files"] == {p.name: p.stat().st_size for p in index.parent.glob("*.safetensors")}
