"""Two ranks train like one with twice the batch, and one number of ranks goes on where another stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.commands import run_train
from support.nets import trusted
from support.ranks import fail_on_rank_1, train_all
from support.sequences import ordered, with_shardings

from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, Output, TrainingOptions, tiny
from dlrm_factory.config.trust import trust_code
from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.launch import launch
from dlrm_factory.weights.checkpoint import open_checkpoint

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned

pytestmark = pytest.mark.multiprocess

ROWS = 1203  # with an even number of training rows: two ranks would leave the odd one out
# Two ranks add the halves of a batch's gradients; one adds them sample by sample.
TOLERANCE = 1e-4


def declared(batch_size: int, *shardings: str, **training) -> DLRMDeclaration:
    base = tiny()
    tables = [
        msgspec.structs.replace(table, sharding=sharding)
        for table, sharding in zip(base.tables, shardings or ("auto",) * 3, strict=True)
    ]
    options = {"batch_size": batch_size, "epochs": 2} | training
    return msgspec.structs.replace(base, tables=tables, training=msgspec.structs.replace(OPTIONS, **options))


MIXED = ("column_wise", "row_wise", "data_parallel")
SEQUENCES = {
    "sequences": ("row_wise", "table_wise", "column_wise", "row_wise"),
    "mixed_sequences": ("column_wise", "data_parallel", "row_wise", "table_wise"),
}
ADAM = {
    "sparse_optimizer": "adam",
    "sparse_learning_rate": 0.01,
    "gradient_clipping": 0.5,
    "learning_rate_decay": "linear",
}


SPARE = """
import torch
from torch import nn

class Spare(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        width = sum(inputs.pooled.values())
        self.click, self.vector = nn.Linear(width, 1), nn.Linear(width, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, pooled):
        features = pooled.flatten(1)
        return {"vector": self.vector(features), "click": self.click(features).squeeze(1)}
"""


def with_spare_layers(batch_size: int) -> DLRMDeclaration:
    """A layer for a vector that has no loss, and one that no output needs."""
    base = tiny()
    module = ModuleArchitecture(module="spare.py:Spare", sources={"spare.py": SPARE})
    declaration = msgspec.structs.replace(
        declared(batch_size),
        architecture=module,
        dense_arch_layer_sizes=None,
        over_arch_layer_sizes=None,
        outputs=[Output(name="click", label="click"), Output(name="vector", kind="vector", size=3)],
        tables=base.tables,
    )
    trust_code(declaration)
    return declaration


def with_sequences(batch_size: int, *shardings: str, **training) -> DLRMDeclaration:
    """Three sequences, whose order counts, of two tables, beside two pooled tables."""
    options = {"batch_size": batch_size, "epochs": 2} | training
    declaration = with_shardings(ordered(("auto",) * 4), *shardings)
    return msgspec.structs.replace(declaration, training=msgspec.structs.replace(OPTIONS, **options))


def assert_close(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.allclose(tensor.float(), second[key].float(), atol=tolerance), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Everything that two ranks do, done in one start of them."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.set_num_threads(1)

    def job(name: str, **options) -> dict:
        return {"output": folder / f"{name}.safetensors", "rows": ROWS} | options

    def snapshots(name: str, every: int, **options) -> dict:
        return {"checkpoint_dir": folder / name, "checkpoint_every": every} | options

    one_to_two, two_to_one = snapshots("one_to_two", 4), snapshots("two_to_one", 4)
    train_all([(declared(128), job("never", break_off=9, **one_to_two))])
    train_all([(declared(128), job("one")), (declared(128, **ADAM), job("one_adam"))])
    # Row-wise Adagrad has a number for each row of each column shard, so shards are compared with shards.
    train_all([(declared(128, *MIXED), job("one_mixed"))])
    train_all(
        [(trusted("mmoe", batch_size=128), job("one_mmoe")), (with_spare_layers(128), job("one_spare"))]
    )
    train_all([(with_sequences(128, *each), job(f"one_{name}")) for name, each in SEQUENCES.items()])
    train_all([(with_sequences(128, *SEQUENCES["sequences"], **ADAM), job("one_sequences_adam"))])
    reports = launch(
        train_all,
        [
            (trusted("mmoe", batch_size=64), job("two_mmoe")),
            (with_spare_layers(64), job("two_spare")),
            *((with_sequences(64, *each), job(f"two_{name}")) for name, each in SEQUENCES.items()),
            (with_sequences(64, *SEQUENCES["sequences"], **ADAM), job("two_sequences_adam")),
            (declared(64, *MIXED), job("two")),
            (declared(64, *MIXED, **ADAM), job("two_adam")),
            (declared(64, *MIXED), job("never", break_off=9, **snapshots("two_to_two", 4))),
            (declared(64, *MIXED), job("two_resumed", **snapshots("two_to_two", 4, resume=True))),
            (declared(64), job("never", break_off=9, **two_to_one)),
            (declared(64), job("one_then_two", **one_to_two, resume=True)),
            (declared(64, epochs=2, evaluate_every=6), job("odd", rows=ROWS + 1)),
        ],
        processes=2,
    )
    train_all([(declared(128), job("two_then_one", **two_to_one, resume=True))])
    (folder / "reports.json").write_bytes(msgspec.json.encode(reports))
    return folder


def test_the_number_of_training_rows_is_even(folder):
    assert int(open_checkpoint(folder / "one.safetensors").metadata["training_rows"]) % 2 == 0


def test_two_ranks_train_like_one_with_twice_the_batch(folder):
    assert_close(folder / "one_mixed.safetensors", folder / "two.safetensors")


def test_rows_that_count_for_an_output_on_one_rank_more_than_on_the_other_weigh_the_same(folder):
    assert_close(folder / "one_mmoe.safetensors", folder / "two_mmoe.safetensors")


@pytest.mark.parametrize("name", [*SEQUENCES, "sequences_adam"])
def test_sequences_train_on_two_ranks_as_on_one(folder, name):
    assert_close(folder / f"one_{name}.safetensors", folder / f"two_{name}.safetensors")


def test_layers_without_a_loss_do_not_stop_the_ranks(folder):
    assert_close(folder / "one_spare.safetensors", folder / "two_spare.safetensors")


def test_without_a_fused_optimizer_too(folder):
    assert_close(folder / "one_adam.safetensors", folder / "two_adam.safetensors")


def test_the_evaluation_is_gathered_from_both(folder):
    one, two = (open_checkpoint(folder / f"{name}.safetensors") for name in ("one_mixed", "two"))
    assert float(two.metadata["held_out_auc"]) == pytest.approx(float(one.metadata["held_out_auc"]), abs=1e-3)
    assert float(two.metadata["training_loss"]) == pytest.approx(
        float(one.metadata["training_loss"]), abs=1e-3
    )


def test_of_an_odd_number_of_rows_one_is_left_out_in_each_epoch_and_is_not_counted(folder):
    metadata = open_checkpoint(folder / "odd.safetensors").metadata
    rows = int(metadata["training_rows"])
    assert rows % 2 == 1
    history = msgspec.json.decode(metadata["history"])
    steps = -(-rows // 128)
    samples = {1: 128 * 6, 2: rows - 1 + 128 * (12 - steps), 3: 2 * (rows - 1)}
    assert [each["step"] for each in history] == [6, 12, 2 * steps]
    assert [each["samples"] for each in history] == list(samples.values())


def test_two_ranks_go_on_bit_by_bit(folder):
    whole, resumed = load_file(folder / "two.safetensors"), load_file(folder / "two_resumed.safetensors")
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []


def test_two_ranks_go_on_where_one_stopped(folder):
    assert_close(folder / "one.safetensors", folder / "one_then_two.safetensors")


def test_one_rank_goes_on_where_two_stopped(folder):
    assert_close(folder / "one.safetensors", folder / "two_then_one.safetensors")


def test_a_failing_rank_stops_the_others_is_told_once_and_leaves_no_file(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    forkserver._forkserver._stop()  # one that runs prints where it did when it was started
    started = time.monotonic()
    with pytest.raises(DLRMError) as caught:
        launch(fail_on_rank_1, Path("clicks.csv"), processes=2)
    assert str(caught.value) == "clicks.csv: rank 1 cannot read it"
    assert capfd.readouterr() == ("", "")  # nothing else is said
    assert time.monotonic() - started < 120  # not the process group's five minutes
    assert list(tmp_path.iterdir()) == []


def test_the_command_starts_ranks_and_prints_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_train("tiny", "--rows", "1001", "--nproc", "2", "--json")
    assert result.exit_code == 0, result.output
    printed = msgspec.json.decode(result.stdout)
    assert (printed["rows"], printed["checkpoint"]) == (1001, "checkpoint.safetensors")
    assert open_checkpoint(tmp_path / "checkpoint.safetensors").metadata["rows"] == "1001"


def test_an_interrupt_ends_all_ranks(tmp_path):
    dlrm = str(Path(sys.executable).with_name("dlrm"))
    command = [dlrm, "train", "tiny", "--rows", "2000", "--epochs", "9999", "--nproc", "2"]
    command += ["--checkpoint-dir", "snapshots"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("snapshots/step-*")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said) == (130, "dlrm: interrupted; all processes were stopped\n")
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert not (tmp_path / "checkpoint.safetensors").exists()
