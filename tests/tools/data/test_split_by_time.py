"""The latest share of the rows is held out, by an exact threshold, and rows of one time stay together."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data import split
from dlrm_factory.tools.data.bad_rows import BadRowLedger
from dlrm_factory.tools.data.files import Chunk
from dlrm_factory.tools.data.source import read_clicks
from dlrm_factory.tools.data.split import find_time_split


def chunks_of(times: list, *sizes: int) -> list[Chunk]:
    batch, start, chunks = pa.RecordBatch.from_pydict({"ts": times}), 0, []
    for size in (*sizes, len(times)):
        part = batch.slice(start, size)
        chunks.append(Chunk(source="clicks", first_row=start + 1, columns=part))
        start += part.num_rows
    return chunks


def held_out(times: list, holdout: float, *sizes: int) -> list[bool]:
    chunks = chunks_of(times, *sizes)
    split = find_time_split(chunks, "ts", holdout=holdout, ledger=BadRowLedger(0.0))
    return np.concatenate([split.masks(chunk, 0, None).held_out for chunk in chunks]).tolist()


@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=40).filter(lambda times: len(set(times)) > 1),
    st.floats(0.01, 0.99),
    st.lists(st.integers(0, 9), max_size=4),
)
def test_the_threshold_by_sorting_everything(times, holdout, sizes):
    found = held_out(times, holdout, *sizes)
    latest = sorted(times)[min(int(np.floor(len(times) * (1 - holdout))), len(times) - 1)]
    latest = max(latest, sorted(set(times))[1])
    assert found == [time >= latest for time in times]
    assert any(found)
    assert not all(found)


def test_many_different_times_are_merged(monkeypatch):
    monkeypatch.setattr(split, "_MERGE", 10)
    times = np.random.default_rng(0).permutation(300).tolist()
    assert held_out(times, 0.25, *[20] * 14) == [time >= 225 for time in times]


def test_by_hand():
    assert held_out([5, 1, 4, 2, 3], 0.4) == [True, False, True, False, False]
    assert held_out([1, 2, 2, 2], 0.25) == [False, True, True, True]
    assert held_out(["2026-01-02", "2026-01-01", "2026-01-01T23:00:00-05:00"], 0.5) == [True, False, True]


@pytest.mark.parametrize("times", [[7, 7, 7], []])
def test_one_time_cannot_be_split(times):
    with pytest.raises(DataError, match="declare split: hash"):
        held_out(times, 0.5)


def test_numbers_and_times_do_not_mix():
    chunks = [*chunks_of([1, 2]), *chunks_of(["2026-01-01"])]
    with pytest.raises(DataError, match="numbers from clicks, row 1 and times from clicks, row 1"):
        find_time_split(chunks, "ts", holdout=0.5, ledger=BadRowLedger(0.0))


def test_files_are_split_by_time_and_fitted_on_the_earlier_rows(write_csv):
    declaration = msgspec.structs.replace(
        tiny(),
        dense_features=[msgspec.structs.replace(f, transform="standardize") for f in tiny().dense_features],
        training=msgspec.structs.replace(
            tiny().training, split="time", time_column="ts", holdout=0.25, max_bad_rows=0.05
        ),
    )
    header = "click,price,age_days,user_id,item_id,item_tags,ts"
    times = [(37 * i) % 100 for i in range(100)]
    lines = [f"{i % 2},{times[i]},1,u,3,4,{times[i]}" for i in range(100)]
    lines[3] = lines[3].rpartition(",")[0] + ","
    clicks = read_clicks(declaration, [write_csv(*lines, header=header)], rows=None, observe=lambda _: None)
    assert clicks.bad_rows is not None
    assert clicks.bad_rows.kinds[0].reason == "no time"
    price = clicks.features.declaration.dense_features[0]
    assert price.mean is not None
    assert price.std is not None
    seen = np.rint(clicks.dataset.dense[:, 0] * price.std + price.mean).astype(int)
    known = sorted(time for i, time in enumerate(times) if i != 3)
    assert sorted(seen[clicks.held_out].tolist()) == known[74:]
    assert sorted(seen[clicks.training].tolist()) == known[:74]
    assert price.mean == pytest.approx(np.mean(known[:74]))


def test_the_latest_of_the_other_rows_are_for_validation():
    times = np.random.default_rng(0).permutation(100).tolist()
    split = find_time_split(
        chunks_of(times, 30), "ts", holdout=0.2, validation=0.25, ledger=BadRowLedger(0.0)
    )
    masks = split.masks(chunks_of(times)[0], 0, None)
    assert masks.held_out.tolist() == [time >= 80 for time in times]
    assert masks.validation.tolist() == [60 <= time < 80 for time in times]
    assert masks.training.tolist() == [time < 60 for time in times]


def test_without_times_for_a_validation_part():
    with pytest.raises(DataError, match="one time in all rows that are not held out"):
        find_time_split(chunks_of([1, 1, 2]), "ts", holdout=0.3, validation=0.1, ledger=BadRowLedger(0.0))
