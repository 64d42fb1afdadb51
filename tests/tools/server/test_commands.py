"""Commands of the server, without one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.cli import serve as serving
from dlrm_factory.tools.cli.predict import predict
from dlrm_factory.tools.cli.serve import scale, serve, stop

app = typer.Typer()
for command in (predict, scale, serve, stop):
    app.command()(command)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, stdin: str | None = None):
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.mark.parametrize("name", ["serve", "stop", "predict", "scale"])
def test_help(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output
    assert "--run-dir" in result.output


def test_stop_with_nothing_running(run):
    result = run("stop")
    assert result.exit_code == 0
    assert "nothing to stop" in result.output
    assert json.loads(run("stop", "--json").output)["stopped"] is False


def test_predict_and_scale_without_a_server(run):
    for arguments in (("predict", "-"), ("scale", "2")):
        with pytest.raises(ServingError, match="no server runs in"):
            run(*arguments, stdin="{}")


def test_predict_without_a_request(run):
    with pytest.raises(ServingError, match="standard input is empty"):
        run("predict", stdin=" \n")
    with pytest.raises(ServingError, match=r"nope\.json cannot be read: No such file"):
        run("predict", "nope.json")


def test_serve_without_a_store(run):
    with pytest.raises(ServingError, match="model store model_store does not exist"):
        run("serve")


@pytest.mark.parametrize("text", ["1-4", "4:", ":4", "a", ""])
def test_serve_with_bounds_that_are_none(run, text):
    result = run("serve", "--autoscale", text)
    assert result.exit_code == 2
    assert "MIN:MAX" in result.output


def test_serve_with_bounds_upside_down(run):
    with pytest.raises(ServingError, match="autoscaling from 4 to 2 workers"):
        run("serve", "--autoscale", "4:2")
    # A number alone is the most; the store is looked at next.
    with pytest.raises(ServingError, match="model store model_store does not exist"):
        run("serve", "--autoscale", "4")


def test_a_queue_time_without_autoscaling_is_refused(run):
    result = run("serve", "--queue-ms", "3")
    assert result.exit_code == 2
    assert "--autoscale" in result.output
    assert "is not given" in " ".join(result.output.split())


@pytest.mark.parametrize("error", [ServingError("the process beside the server"), KeyboardInterrupt()])
def test_a_server_that_cannot_be_scaled_does_not_stay_behind(tmp_path, monkeypatch, error):
    stopped = []

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(serving, "autoscale_model", fail)
    monkeypatch.setattr(serving, "stop_server", lambda path, **options: stopped.append(path))
    server = SimpleNamespace(workers={"dlrm": 1}, run_dir=SimpleNamespace(root=tmp_path))
    monkeypatch.setattr(serving, "start_server", lambda options, tell: server)
    with pytest.raises(type(error)):
        serve(autoscale="1:2")
    assert stopped == [tmp_path]


def test_scale_below_zero(run):
    assert run("scale", "--", "-1").exit_code == 2
