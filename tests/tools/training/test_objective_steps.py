"""TorchRec's train pipeline, which CUDA uses, trains as the plain loop does."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from support.nets import trusted

from dlrm_factory.config import DLRMDeclaration, TrainingOptions, tiny
from dlrm_factory.config.trust import trust_code
from dlrm_factory.tools.data.source import generate_clicks
from dlrm_factory.tools.training import loop
from dlrm_factory.tools.training.loop import TrainingData, TrainingRun
from dlrm_factory.tools.training.objective import PipelinedSteps, PlainSteps, make_objective, make_steps

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned


def plain_and_sharded() -> DLRMDeclaration:
    base = tiny()
    options = {"batch_size": 64, "epochs": 2, "evaluate_every": 5, "gradient_clipping": 0.1}
    options |= {"warmup_steps": 3, "learning_rate_decay": "linear"}
    training = msgspec.structs.replace(OPTIONS, **options)
    tables = [
        msgspec.structs.replace(table, sharding=sharding)
        for table, sharding in zip(base.tables, ("row_wise", "column_wise", "table_wise"), strict=True)
    ]
    return msgspec.structs.replace(base, training=training, tables=tables)


def with_outputs(name: str) -> DLRMDeclaration:
    return trusted(name, batch_size=64, epochs=2, evaluate_every=5)


def trained(declaration: DLRMDeclaration, steps, monkeypatch) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    clicks = generate_clicks(declaration, rows=800, write_to=None, observe=lambda progress: None)
    data = TrainingData(
        clicks=clicks.dataset,
        training=clicks.training,
        validation=clicks.validation,
        held_out=clicks.held_out,
    )
    objective = make_objective(declaration)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "make_steps", steps)
        run = TrainingRun(objective, data)
    logits = run.train()
    assert run.state.step == 24
    assert len(run.state.history) == 5
    return objective.built.state_dict(), logits


@pytest.mark.filterwarnings("ignore")  # what the pipeline says of streams that a CPU has not
@pytest.mark.parametrize(
    "declaration",
    [plain_and_sharded(), with_outputs("mmoe"), with_outputs("din")],
    ids=["dlrm", "mmoe", "din"],
)
def test_the_pipeline_gives_the_weights_of_the_plain_loop(declaration, monkeypatch):
    trust_code(declaration)
    plain, plain_logits = trained(declaration, PlainSteps, monkeypatch)
    piped, piped_logits = trained(declaration, PipelinedSteps, monkeypatch)
    assert [key for key in plain if not torch.equal(plain[key], piped[key])] == []
    assert np.array_equal(plain_logits, piped_logits)


def test_a_cpu_takes_the_plain_loop():
    assert isinstance(make_steps(make_objective(tiny())), PlainSteps)
