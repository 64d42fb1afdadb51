"""Workers by queue time: decisions, and what is done."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout.state import RolloutFile, RunningRollout
from dlrm_factory.tools.server import RunDir, ServerState
from dlrm_factory.tools.sidecar import autoscaling
from dlrm_factory.tools.sidecar.autoscaling import (
    Autoscaler,
    AutoscaleSettings,
    Policy,
    QueueTimes,
    read_settings,
    write_settings,
)

SETTINGS = AutoscaleSettings(min_workers=1, max_workers=3, queue_ms=4.0, up_after_s=10.0, down_after_s=60.0)


def decisions(looks: list[tuple[float, float | None, int]], workers: int = 2) -> list[int]:
    """Workers after each look: (seconds, queue time, requests that wait)."""
    policy = Policy(SETTINGS)
    found = []
    for now, queue_ms, waiting in looks:
        workers = policy.wanted(now, workers, queue_ms, waiting)
        found.append(workers)
    return found


def test_a_worker_is_added_when_requests_have_waited_long_enough() -> None:
    assert decisions([(0, 9.0, 0), (5, 9.0, 0), (10, 9.0, 0), (15, 9.0, 0), (30, 9.0, 0)]) == [2, 2, 3, 3, 3]


def test_a_short_rush_adds_none() -> None:
    assert decisions([(0, 9.0, 0), (5, 2.0, 0), (10, 9.0, 0), (15, 9.0, 0)]) == [2, 2, 2, 2]


def test_a_worker_goes_when_hardly_any_waits_for_long() -> None:
    assert decisions([(0, 0.5, 0), (55, 0.5, 0), (60, 0.5, 0), (65, 0.5, 0), (120, None, 0)]) == [
        2,
        2,
        1,
        1,
        1,
    ]


def test_between_a_quarter_and_the_whole_nothing_changes() -> None:
    assert decisions([(t, 2.0, 0) for t in range(0, 500, 20)]) == [2] * 25


def test_nobody_is_answered_for_all_wait_or_nobody_asks() -> None:
    assert decisions([(0, None, 7), (10, None, 7)]) == [2, 3]
    assert decisions([(0, None, 0), (60, None, 0)]) == [2, 1]


def test_workers_are_brought_within_the_bounds_at_once() -> None:
    assert decisions([(0, 2.0, 0)], workers=7) == [3]
    assert decisions([(0, 2.0, 0)], workers=0) == [1]


@pytest.mark.parametrize("bad", [{"min_workers": 3, "max_workers": 2}, {"min_workers": 0, "max_workers": 2}])
def test_bounds_that_are_none(bad: dict[str, int]) -> None:
    with pytest.raises(ServingError, match="1 ≤ the fewest ≤ the most"):
        AutoscaleSettings(**bad)
    with pytest.raises(ServingError, match="more than 0"):
        AutoscaleSettings(min_workers=1, max_workers=2, queue_ms=0)


def metrics(waited_us: float, requests: float, **labels: str) -> str:
    text = "".join(f'{name}="{value}",' for name, value in {"model_version": "default", **labels}.items())
    return (
        "# TYPE ts_queue_latency_microseconds counter\n"
        f'ts_queue_latency_microseconds{{model_name="dlrm",{text}hostname="h",}} {waited_us}\n'
        f'ts_inference_requests_total{{model_name="dlrm",{text}hostname="h",}} {requests}\n'
    )


def test_queue_times_are_means_between_two_looks() -> None:
    times = QueueTimes()
    assert times.mean_ms(metrics(5e6, 1000), "dlrm", "1.0") is None
    other = metrics(9e9, 10, model_version="2.0") + metrics(9e9, 10, model_name="other")
    assert times.mean_ms(metrics(5.3e6, 1100) + other, "dlrm", "1.0") == pytest.approx(3.0)
    assert times.mean_ms(metrics(5.3e6, 1100) + other, "dlrm", "1.0") is None
    # Requests that ask for the default version by its name count too.
    named = metrics(2e5, 100, model_version="1.0")
    assert times.mean_ms(metrics(5.3e6, 1100) + named, "dlrm", "1.0") == pytest.approx(2.0)


class Server:
    """TorchServe of one model: what it says of itself, and what it was told."""

    def __init__(self, run_dir: RunDir, state: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = InMemoryManagement(version_of("1.0", pids=(1,), wanted=1))
        self.now, self.waited, self.requests = 0.0, 0.0, 0
        self.scaled: list[int] = []
        self.error: ServingError | None = None

        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text=metrics(self.waited, self.requests))

        def http_client(url: str, auth: object, timeout: float) -> httpx.Client:
            return httpx.Client(base_url=url, transport=httpx.MockTransport(answer))

        monkeypatch.setattr(autoscaling, "http_client", http_client)
        self.autoscaler = Autoscaler(run_dir, state, self.client, scale=self._scale, clock=lambda: self.now)

    def _scale(self, workers: int, *, model: str, run_dir: Path) -> None:
        self.scaled.append(workers)
        if self.error:
            raise self.error
        self.client.found["1.0"] = version_of("1.0", pids=(1,) * workers, wanted=workers)

    def pass_time(self, seconds: float, queue_ms: float) -> None:
        """Answer 100 requests a second, each of which has waited so long."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.requests += 100
            self.waited += 100 * queue_ms * 1000
            self.autoscaler.work()


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    made = RunDir.at(tmp_path / "run")
    made.prepare()
    return made


@pytest.fixture
def server(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> Server:
    addresses = dict.fromkeys(["inference", "management", "metrics"], "http://127.0.0.1:9")
    grpc = dict.fromkeys(["grpc_inference", "grpc_management"], "127.0.0.1:9")
    others = {
        "pid": 1,
        "started": 0.0,
        "models": ("dlrm",),
        "token_auth": False,
        "model_store": "",
        "tmp": "",
    }
    write_settings(run_dir, "dlrm", SETTINGS)
    return Server(run_dir, ServerState(**addresses, **grpc, **others), monkeypatch)


def test_workers_follow_the_queue_time_up_and_down_again(server: Server) -> None:
    server.pass_time(60, 9.0)
    assert server.scaled == [2, 3]
    server.pass_time(200, 0.2)
    assert server.scaled == [2, 3, 2, 1]
    text = server.autoscaler.metrics()
    assert 'dlrm_autoscale_workers{model="dlrm"} 1\n' in text
    assert 'dlrm_autoscale_queue_seconds{model="dlrm"} 0.0002\n' in text
    assert 'dlrm_autoscale_changes_total{model="dlrm",direction="up"} 2\n' in text
    assert 'dlrm_autoscale_changes_total{model="dlrm",direction="down"} 2\n' in text


def test_a_worker_that_does_not_come_up_leaves_things_as_they_were(server: Server) -> None:
    server.error = ServingError("no room for it")
    server.pass_time(100, 9.0)
    assert server.scaled == [2]
    assert server.client.calls == [("scale", None, 1)]
    assert 'direction="failed"} 1' in server.autoscaler.metrics()
    server.error = None
    server.pass_time(300, 9.0)
    assert server.scaled[:2] == [2, 2]


def test_nothing_is_scaled_without_settings_or_during_a_rollout(server: Server, run_dir: RunDir) -> None:
    RolloutFile(run_dir).change("dlrm", running=RunningRollout.own("2.0"))
    server.pass_time(60, 9.0)
    write_settings(run_dir, "dlrm", None)
    RolloutFile(run_dir).change("dlrm", running=None)
    server.pass_time(60, 9.0)
    assert server.scaled == []
    assert server.autoscaler.metrics() == ""


def test_settings_that_cannot_be_read_are_none(run_dir: RunDir) -> None:
    write_settings(run_dir, "dlrm", SETTINGS)
    assert read_settings(run_dir) == {"dlrm": SETTINGS}
    run_dir.autoscale_file.write_text('{"dlrm": {"min_workers": 5, "max_workers": 1}}')
    assert read_settings(run_dir) == {}
