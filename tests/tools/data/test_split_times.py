from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.tools.data.bad_rows import BadRowLedger, Place
from dlrm_factory.tools.data.split import encode_times

PLACE = Place(source="clicks", first_row=1, column="ts")
SECOND = 1_000_000
NEW_YEAR = 1_767_225_600 * SECOND  # 2026-01-01 00:00:00 UTC


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (pa.array([3, 1]), "number", [3, 1]),
        (pa.array([2**62 + 1, 2**62]), "number", [2**62 + 1, 2**62]),
        (pa.array([1.5, 2.0]), "number", [1.5, 2.0]),
        (pa.array(["968035345", "12"]), "number", [968035345, 12]),
        (pa.array(["1.5", "2"]), "number", [1.5, 2.0]),
        (pa.array([datetime.date(2026, 1, 1)]), "time", [NEW_YEAR]),
        (pa.array([NEW_YEAR // SECOND], pa.timestamp("s")), "time", [NEW_YEAR]),
        (pa.array([NEW_YEAR * 1000 + 1], pa.timestamp("ns")), "time", [NEW_YEAR]),
        (pa.array([NEW_YEAR], pa.timestamp("us", "Europe/Berlin")), "time", [NEW_YEAR]),
        (pa.array(["2026-01-01", "2026-01-01 00:00:01"]), "time", [NEW_YEAR, NEW_YEAR + SECOND]),
        (pa.array(["2026-01-01T00:00:00Z", "2026-01-01"]), "time", [NEW_YEAR, NEW_YEAR]),
        (pa.array(["2026-01-01T02:00:00+02:00"]), "time", [NEW_YEAR]),
        (pa.array(["2026-01-01 00:00:00.000001999"]), "time", [NEW_YEAR + 1]),
        (pa.array([" 2026-01-01 "]).dictionary_encode(), "time", [NEW_YEAR]),
    ],
)
def test_times_can_be_compared(column, kind, values):
    times = encode_times(column, PLACE)
    assert times.kind == kind
    assert times.values.tolist() == values


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, None]), 'row 2, column "ts": there is no time'),
        (pa.array([1.0, float("nan")]), "row 2, .*: there is no time"),
        (pa.array(["2026-01-01", "yesterday"]), 'row 2, .*: "yesterday" is neither a number nor a time'),
        (pa.array(["12", "13", "soon"]), 'row 3, .*: "soon" is neither'),
        (pa.array(["2026-01-01", "2026-02-30"]), 'row 2, .*: "2026-02-30" is neither'),
        (pa.array([[1]]), "holds list"),
    ],
)
def test_what_is_no_time_is_named(column, message):
    with pytest.raises(DataError, match=message):
        encode_times(column, PLACE)


def test_wrong_ones_are_taken_down():
    ledger = BadRowLedger(1.0)
    wrong = ledger.chunk(5)
    place = Place(source="clicks", first_row=1, column="ts", wrong=wrong)
    column = pa.array(["2026-01-01", "x", None, "2026-01-01T00:00:00Z", "y"])
    times = encode_times(column, place)
    assert wrong is not None
    assert wrong.mask.tolist() == [False, True, True, False, True]
    assert times.values[~wrong.mask].tolist() == [NEW_YEAR, NEW_YEAR]
    assert ledger.kinds == {("ts", "not a time"): 2, ("ts", "no time"): 1}
    assert times.values.dtype == np.int64
