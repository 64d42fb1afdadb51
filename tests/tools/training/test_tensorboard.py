from __future__ import annotations

import builtins

import msgspec
import pytest
from support.commands import run_train

from dlrm_factory.errors import DLRMError, StackError
from dlrm_factory.tools.training.tensorboard import tensorboard

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf and tensorboard


def test_the_command_writes_scalars(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    result = run_train("tiny", "--rows", "20000", "--epochs", "2", "--tensorboard", "logs", "--json")
    assert result.exit_code == 0, result.output
    events = EventAccumulator("logs")
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "training/loss",
        "training/samples_per_second",
        "training/mean_loss",
        "learning_rate/dense",
        "learning_rate/tables",
        "held_out/auc",
        "held_out/log_loss",
    }
    history = msgspec.json.decode(result.stdout)["history"]
    found = [(event.step, pytest.approx(event.value, abs=1e-6)) for event in events.Scalars("held_out/auc")]
    assert [(e["step"], e["held_out_auc"]) for e in history] == found
    assert len(events.Scalars("training/loss")) > 2
    last = events.Scalars("learning_rate/dense")[-1]
    assert (last.step, last.value) == (
        history[-1]["step"],
        pytest.approx(history[-1]["learning_rate"], rel=1e-5),
    )


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(StackError, match=r"pip install 'torchserve-dlrm\[tensorboard\]'"),
        tensorboard(tmp_path),
    ):
        pass


def test_options_that_need_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options in (["--resume"], ["--checkpoint-every", "5"]):
        result = run_train("tiny", *options)
        assert isinstance(result.exception, DLRMError)
        assert str(result.exception) == f"{options[0]} needs --checkpoint-dir, the folder of the snapshots"
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run_train("tiny", "--nproc", "2")
    assert "torchrun has done so" in str(result.exception)
