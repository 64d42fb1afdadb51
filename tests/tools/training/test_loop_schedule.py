from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dlrm_factory.config import TrainingOptions, tiny
from dlrm_factory.tools.training import loop, train
from dlrm_factory.tools.training.loop import Schedule, rank_slices

OPTIONS = TrainingOptions(label="click")  # not the preset's, which are tuned


def schedule(**options) -> Schedule:
    """10 steps of 4 samples."""
    training = msgspec.structs.replace(OPTIONS, **options)
    return Schedule(options=training, samples=40, step_samples=4)


def factors(plan: Schedule) -> list[float]:
    return [plan.factor(step=step, seen=4 * (step - 1)) for step in range(1, 11)]


def test_without_a_schedule_the_declared_rates_stay():
    assert factors(schedule()) == [1.0] * 10


def test_warm_up_rises_to_the_declared_rates():
    assert factors(schedule(warmup_steps=4)) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_linear_decay_follows_warm_up_and_ends_one_step_above_0():
    linear = factors(schedule(warmup_steps=2, learning_rate_decay="linear"))
    assert linear == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_decay_is_half_way_in_the_middle():
    cosine = factors(schedule(learning_rate_decay="cosine"))
    assert (cosine[0], cosine[5]) == (1.0, pytest.approx(0.5))
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 0.05


def test_decay_keeps_its_course_at_another_number_of_ranks():
    one = schedule(learning_rate_decay="linear")
    two = Schedule(options=one.options, samples=40, step_samples=8)
    assert two.factor(step=8, seen=20) == one.factor(step=6, seen=20) == 0.5


@pytest.mark.parametrize(("rows", "left_out"), [(12, 0), (11, 1), (9, 1), (1, 1)])
def test_ranks_share_the_rows_evenly_and_leave_the_odd_one_out(monkeypatch, rows, left_out):
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 2)
    taken = []
    for rank in (0, 1):
        monkeypatch.setattr(loop.dist, "get_rank", lambda rank=rank: rank)
        taken.append(list(rank_slices(np.arange(rows)[::-1], 2)))
    assert [len(mine) for mine, _ in taken[0]] == [len(mine) for mine, _ in taken[1]]
    assert sum(count for _, count in taken[0]) == rows - left_out
    seen = sorted(row for pieces in taken for mine, _ in pieces for row in mine.tolist())
    assert seen == list(range(left_out, rows))


def test_the_history_tells_the_rate_of_the_step(tmp_path):
    base = tiny()
    training = msgspec.structs.replace(
        OPTIONS,
        batch_size=100,
        epochs=2,
        warmup_steps=4,
        learning_rate_decay="linear",
        learning_rate=0.01,
        evaluate_every=2,
    )
    declaration = msgspec.structs.replace(base, training=training)
    report = train(declaration, output=tmp_path / "c.safetensors", rows=500)
    rates = {evaluation.step: evaluation.learning_rate for evaluation in report.history}
    assert list(rates) == [2, 4, 6, 8, 10]
    assert (rates[2], rates[4]) == (pytest.approx(0.005), pytest.approx(0.01))
    assert 0.01 > rates[6] > rates[8] > rates[10] > 0
