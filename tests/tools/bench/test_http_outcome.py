"""Percentiles, the message stream, pictures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.tools.bench.http.finding import (
    FoundRate,
    Trial,
    check_picture,
    draw_found_rate,
    draw_latencies,
)
from dlrm_factory.tools.bench.http.messages import Progress, WindowBegan, read_message, write_message
from dlrm_factory.tools.bench.http.outcome import Outcome


def outcome(milliseconds, **changes):
    return Outcome(
        **{
            "offered": None,
            "window_s": 2.0,
            "latencies": np.sort(np.array(milliseconds, dtype=np.float64)) / 1000,
            "late": np.empty(0),
            "statuses": {200: len(milliseconds), 503: 1},
            "failures": {"timed out": 2},
            "answered_in_window": len(milliseconds),
            "samples_in_window": 5 * len(milliseconds),
            "generator_cores": 0.3,
            **changes,
        }
    )


def test_percentiles_are_latencies_that_occurred():
    found = outcome(range(1, 1001))
    assert found.latency_ms(50) == pytest.approx(500)
    assert found.latency_ms(99) == pytest.approx(990)
    assert found.latency_ms(99.9) == pytest.approx(999)
    assert found.latency_ms(100) == pytest.approx(1000)


def test_rates_and_failures():
    found = outcome([1, 2, 3, 4])
    assert (found.rate, found.sample_rate, found.failed) == (2.0, 10.0, 3)
    assert not found.generator_is_limit
    assert outcome([1], generator_cores=0.95).generator_is_limit
    assert json.loads(json.dumps(found.as_dict()))["statuses"] == {"200": 4, "503": 1}
    assert outcome([]).as_dict()["latency_ms"] is None


def test_messages_survive_a_stream_in_pieces():
    class Trickle(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    stream = io.BytesIO()
    sent = [Progress(elapsed_s=0.5, answered=3, failed=0), WindowBegan()]
    for message in sent:
        write_message(stream, message)
    trickle = Trickle(stream.getvalue())
    assert [read_message(trickle), read_message(trickle), read_message(trickle)] == [*sent, None]


def test_pictures(tmp_path):
    draw_latencies(outcome([1, 2, 3, 50]), "four requests", tmp_path / "a.svg")
    assert (
        b"four requests" in (tmp_path / "a.svg").read_bytes() or b"<svg" in (tmp_path / "a.svg").read_bytes()
    )
    trials = tuple(Trial(rate=r, held=r < 20, outcome=outcome([1, r])) for r in (10.0, 20.0))
    found = FoundRate(rate=10.0, bound_ms=15.0, closed_loop=outcome([1]), trials=trials)
    draw_found_rate(found, "found", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"\.svg"):
        check_picture(tmp_path / "c.gif")
