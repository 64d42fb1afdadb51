"""The status of a server: figures, a terminal, a page."""

from __future__ import annotations

import contextlib
import html.parser
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.monitoring import NOW
from typer.testing import CliRunner

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.cli.status_view import sparkline, status_view
from dlrm_factory.tools.monitoring.status import StatusReader
from dlrm_factory.tools.monitoring.status_page import status_page
from dlrm_factory.tools.monitoring.words import age, milliseconds, rate
from dlrm_factory.tools.server import ModelVersion, RunDir
from dlrm_factory.tools.server.management import Worker


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of model shop, of which version 1.0 wants two workers and has one."""
    state = SimpleNamespace(
        tmp=str(tmp_path),
        started=NOW - 7200,
        pid=77,
        inference="http://127.0.0.1:8080",
        metrics="http://127.0.0.1:1",
    )
    one = ModelVersion(
        model="shop",
        version="1.0",
        location="shop.mar",
        wanted=2,
        workers=(Worker(id="1", pid=1, ready=True),),
        waiting=3,
    )

    @contextlib.contextmanager
    def client(*arguments):
        yield SimpleNamespace(models=lambda: ["shop"], versions=lambda name: [one], describe=lambda name: one)

    monkeypatch.setattr("dlrm_factory.tools.monitoring.status.running_server", lambda path: state)
    monkeypatch.setattr("dlrm_factory.tools.monitoring.status.management_client", client)
    return RunDir.at(tmp_path / "run")


@pytest.fixture
def status(server, work, bodies, tmp_path):
    times = iter([NOW, NOW + 4])
    reader = StatusReader(server, clock=lambda: next(times))
    work([*bodies * 60, {"instances": [{"item": 900}]}])
    return reader.read()


def shown(status, width=110):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(status_view(status))
    return console.file.getvalue()


def test_figures(status):
    (found,) = status.models
    assert (found.default, found.workers, found.wanted, found.waiting) == (True, 1, 2, 3)
    assert (found.requests, found.errors, found.engines) == (1201, 1, {"eager": 1, "compiled": 0})
    # 4 s between the readings; the worker is new.
    assert found.rates.requests == pytest.approx(1201 / 4)
    assert found.rates.errors == pytest.approx(0.25)
    assert 0 < found.rates.p50_s <= found.rates.p99_s < 1
    assert sum(found.rates.stages.values()) < 1
    assert found.archive_created == NOW - 3600
    assert 0 < found.mean_score < 1
    assert sum(found.score_counts) == 1200
    assert not found.ok
    assert found.private_bytes > 1e6
    json.dumps(status.as_dict())


def test_a_person_sees_it(status):
    text = shown(status)
    for words in (
        "shop 1.0 default",
        "1 of 2 ready",
        "300 requests/s",
        "queue 3",
        "p99",
        "up to",
        "16 goldens",
    )[:5]:
        assert words in text
    assert "archive 1.0 h old" in text
    assert "none yet: `dlrm labels FILE`" in text
    assert all(len(line) <= 80 for line in shown(status, 80).splitlines())


def test_drift_is_told_with_enough_samples(status):
    (found,) = status.models
    assert found.drift.samples == 64  # as many as one count takes
    assert found.reference_samples == 4000
    assert "waits for 1,000 samples" in shown(status)


def test_a_version_without_a_reference_says_so(status):
    (found,) = status.models
    without = replace(status, models=[replace(found, drift=None, reference_samples=0)])
    assert "no reference: it was made without 1,000 held-out samples" in " ".join(shown(without).split())
    assert "the archive has no reference" in status_page(without)


class Page(html.parser.HTMLParser):
    """Checks that tags close, and collects text and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.addresses, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_else(status):
    page = Page(status_page(status))
    assert page.open == []
    assert page.addresses == []
    assert "script" not in page.tags
    words = " ".join(page.words)
    for each in ("shop 1.0", "1 of 2", "requests/s", "p99 of a batch", "drift against training", "golden"):
        assert each in words


def test_names_are_escaped(status):
    from dataclasses import replace

    (found,) = status.models
    text = status_page(replace(status, models=[replace(found, model="<script>")]))
    assert "<script>" not in text


def test_the_command(server, work, bodies, tmp_path):
    work(bodies)
    page = tmp_path / "status.html"
    done = CliRunner().invoke(app, ["status", "--interval", "0.6", "--html", str(page), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["models"][0]["requests"] == 20
    assert page.read_text().startswith("<!doctype html>")
    done = CliRunner().invoke(app, ["status", "--interval", "0.6"])
    assert "1 of 2 ready" in done.stdout


@pytest.mark.parametrize("command", ["status", "metrics", "labels FILE.csv"])
def test_without_a_server_one_line_says_so(tmp_path, command):
    done = CliRunner().invoke(app, [*command.split(), "--run-dir", str(tmp_path)])
    assert isinstance(done.exception, ServingError)
    assert "no server runs in" in str(done.exception)


def test_words():
    assert [age(s) for s in (45, 720, 12_600, 172_800, 2_000_000)] == [
        "45 s",
        "12 min",
        "3.5 h",
        "2.0 d",
        "23 d",
    ]
    assert [milliseconds(s) for s in (None, 0.00084, 0.012)] == ["–", "0.84 ms", "12 ms"]
    assert [rate(value) for value in (0, 1.25, 1234.4)] == ["0", "1.2", "1,234"]
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
