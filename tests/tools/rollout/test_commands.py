"""Commands that operate a server, without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.cli import operate
from dlrm_factory.tools.cli.operate import autoscale, proxy, ready, rollback, rollout
from dlrm_factory.tools.rollout import RolloutOptions, RolloutResult
from dlrm_factory.tools.server import Health, ModelHealth

app = typer.Typer()
for command in (autoscale, proxy, ready, rollback, rollout):
    app.command()(command)

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.mark.parametrize("name", ["autoscale", "proxy", "ready", "rollback", "rollout"])
def test_help(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--run-dir" in result.output


@pytest.mark.parametrize("arguments", [("rollout", "x.mar"), ("rollback",), ("autoscale",)])
def test_without_a_server(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ServingError, match="no server runs in"):
        run(*arguments)


def test_ready_is_an_exit_status_a_line_and_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("ready")
    assert result.exit_code == 1
    assert "not ready: no server runs in" in result.output
    result = run("ready", "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["ready"] is False
    model = ModelHealth(model="dlrm", version="1.0", ready=2, needed=1)
    answers = [Health(live=True, ready=False, reason="it starts")] * 2
    answers.append(Health(live=True, ready=True, reason="", models=(model,)))
    monkeypatch.setattr(operate, "health_of", lambda path: answers.pop(0))
    monkeypatch.setattr(operate, "_POLL_S", 0.01)
    result = run("ready", "--wait", "30")
    assert (result.exit_code, result.output) == (0, "ready: dlrm 1.0: 2 of 1 workers\n")


def test_times_and_shares_are_read_as_they_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RolloutOptions] = []

    def roll_out(options: RolloutOptions, *others: Any) -> RolloutResult:
        asked.append(options)
        return RolloutResult(model="dlrm", old="1.0", new="2.0", seconds=1.25, steps={"bring": {}})

    monkeypatch.setattr(operate, "roll_out", roll_out)
    result = run(
        *("rollout", "new.mar", "--canary", "5%", "--for", "10m", "--keep", "1h", "--watch", "90"),
        *("--max-error-rate", "0.5%", "--shadow", "--shadow-time", "2.5s"),
    )
    assert result.output == (
        "rolled out: dlrm 1.0 → 2.0 in 1.2 s; 1.0 stays for 1h (`dlrm rollback` goes back to it)\n"
    )
    (found,) = asked
    assert (found.canary, found.canary_s, found.keep_s, found.watch_s) == (0.05, 600.0, 3600.0, 90.0)
    assert (found.bounds.max_error_rate, found.shadow, found.shadow_s) == (0.005, True, 2.5)
    assert json.loads(run("rollout", "new.mar", "--json").output)["to"] == "2.0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "soon"), "is no time"),
        (("--keep", "-1s"), "is no time"),
        (("--canary", "200%"), "is no share"),
        (("--canary", "some"), "is no share"),
    ],
)
def test_times_and_shares_that_are_none(run: Run, arguments: tuple[str, str], said: str) -> None:
    result = run("rollout", "new.mar", *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_rollout_without_an_archive(run: Run) -> None:
    result = run("rollout")
    assert result.exit_code == 2
    assert "--history" in result.output


def test_the_history_is_a_line_each(run: Run, tmp_path: Path) -> None:
    assert run("rollout", "--history").output == "nothing has been rolled out\n"
    (tmp_path / ".dlrm").mkdir()
    entry = {
        "at": "2026-01-01",
        "model": "dlrm",
        "from": "1.0",
        "to": "2.0",
        "outcome": "aborted",
        "seconds": 3.5,
    }
    (tmp_path / ".dlrm" / "rollouts.jsonl").write_text(json.dumps({**entry, "reason": "PSI 0.3"}) + "\n")
    assert run("rollout", "--history").output == "2026-01-01  dlrm 1.0 → 2.0  aborted (3.5 s): PSI 0.3\n"
    assert json.loads(run("rollout", "--history", "--json").output)[0]["to"] == "2.0"


def test_the_proxy_needs_a_version(run: Run) -> None:
    text = run("proxy", "--canary", "5%", "--version", "2.0").output
    assert '5%  "/predictions/dlrm/2.0";' in text
    assert "server 127.0.0.1:8080;" in text
    with pytest.raises(ServingError, match=r"no rollout of dlrm runs .*--version 2\.0"):
        run("proxy", "--canary", "5%")


def test_bounds_of_workers_that_are_none(run: Run) -> None:
    with pytest.raises(ServingError, match="1 ≤ the fewest ≤ the most"):
        run("autoscale", "--min", "3", "--max", "2")
