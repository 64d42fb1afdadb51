"""Answers of probes by HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dlrm_factory.tools.server import RunDir
from dlrm_factory.tools.sidecar import probes
from dlrm_factory.tools.sidecar.probes import Probes, ProbeServer


class Answers:
    """Probes with one answer."""

    asked = 0

    def answer(self, path: str) -> tuple[int, str, str]:
        self.asked += 1
        return (
            (503, "application/json", '{"ready": false, "reason": "ü"}')
            if path == "/ready"
            else (404, "a/b", "")
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProbeServer]:
    monkeypatch.setattr(probes, "_MAX_CONNECTIONS", 2)
    made = ProbeServer("127.0.0.1", 0, Answers())
    yield made
    made.close()


def test_a_probe_gets_its_status_and_reason(server: ProbeServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    found = httpx.get(f"{url}/ready?verbose=1", trust_env=False)
    assert (found.status_code, found.json()) == (503, {"ready": False, "reason": "ü"})
    assert httpx.get(f"{url}/other", trust_env=False).status_code == 404
    assert httpx.post(f"{url}/ready", content=b"x", trust_env=False).status_code == 501


def test_idle_connections_do_not_take_more_than_their_share(server: ProbeServer) -> None:
    address = ("127.0.0.1", server.server_port)
    idle = [socket.create_connection(address, timeout=10) for _ in range(3)]
    try:
        # Two are waited for; one of the three is closed at once.
        idle[2].settimeout(10)
        assert idle[2].recv(1) == b""
    finally:
        for each in idle:
            each.close()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probes:
    """Probes of a server that has ended."""
    run_dir = RunDir.at(tmp_path)
    monkeypatch.setattr(probes, "management_client", lambda *given, **others: None)
    monkeypatch.setattr(probes, "is_running", lambda state: False)
    return Probes(run_dir, SimpleNamespace())


def test_metrics_of_all_sources_follow_readiness(own: Probes) -> None:
    own.metrics |= {
        "models": lambda: "dlrm_requests_total 1\n",
        "autoscale": lambda: "dlrm_autoscale_workers 2\n",
    }
    status, kind, text = own.answer("/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["dlrm_server_ready"].samples[0].value == 0
    assert {each.labels["source"]: each.value for each in families["dlrm_metrics_up"].samples} == {
        "models": 1.0,
        "autoscale": 1.0,
    }
    assert text.endswith("dlrm_requests_total 1\ndlrm_autoscale_workers 2\n")


def test_a_source_that_fails_is_told_and_takes_no_other_with_it(
    own: Probes, caplog: pytest.LogCaptureFixture
) -> None:
    texts: list[Any] = [
        ValueError("half a file"),
        ValueError("again"),
        "dlrm_requests_total 1\n",
        OSError("gone"),
    ]

    def models() -> str:
        found = texts.pop(0)
        if isinstance(found, Exception):
            raise found
        return str(found)

    own.metrics |= {"models": models, "autoscale": lambda: "dlrm_autoscale_workers 2\n"}
    for up in (0, 0, 1, 0):
        status, _, text = own.answer("/metrics")
        assert status == 200
        assert f'dlrm_metrics_up{{source="models"}} {up}\n' in text
        assert 'dlrm_metrics_up{source="autoscale"} 1\n' in text
        assert "dlrm_autoscale_workers 2" in text
        assert ("dlrm_requests_total" in text) == bool(up)
    # Once each time that it begins to fail, not for each scrape.
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "half a file",
        "gone",
    ]
