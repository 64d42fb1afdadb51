"""Start, ask, scale, break and stop a real TorchServe, with handlers of a few lines in place of a model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import (
    LogMarks,
    ManagementClient,
    RunningServer,
    ServeOptions,
    find_endpoint,
    management_client,
    predict,
    running_server,
    scale_model,
    start_server,
    stop_server,
)
from dlrm_factory.tools.server.processes import server_processes
from dlrm_factory.tools.server.rundir import RunDir
from dlrm_factory.tools.server.settings import base_config

pytestmark = pytest.mark.integration

PORTS = dict.fromkeys(("inference_address", "management_address", "metrics_address"), 0)
TOKEN_SECONDS = 3
HANDLERS = {
    # What arrives, type and all: the handler must get the very bytes that were sent.
    "echo": """
class Echo:
    def initialize(self, context): ...
    def handle(self, data, context):
        return [type(row["body"]).__name__.encode() + b" " + bytes(row["body"]) for row in data]
""",
    "fragile": """
import os, pathlib
class Fragile:
    def initialize(self, context):
        flag = pathlib.Path(__FLAG__)
        if flag.exists(): raise MemoryError(flag.read_text())
    def handle(self, data, context):
        return [str(os.getpid()).encode() for _ in data]
""",
    "broken": """
class Broken:
    def initialize(self, context): raise ValueError('table "t_user": the file is 3 bytes short')
    def handle(self, data, context): ...
""",
    "slow": """
import time
class Slow:
    def initialize(self, context): time.sleep(60)
    def handle(self, data, context): ...
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def flag(folder: Path) -> Path:
    """File with whose text new workers of "fragile" fail while it exists."""
    return folder / "flag"


@pytest.fixture(scope="module")
def store(folder: Path, flag: Path) -> Path:
    store = folder / "model_store"
    store.mkdir()
    (folder / "model-config.yaml").write_text("minWorkers: 1\nmaxWorkers: 1\n")
    for name, code in HANDLERS.items():
        handler = folder / f"{name}_handler.py"
        handler.write_text(code.replace("__FLAG__", repr(str(flag))))
        arguments = ["--model-name", name, "--version", "1.0", "--handler", str(handler)]
        arguments += ["--config-file", str(folder / "model-config.yaml"), "--export-path", str(store)]
        archiver = "from model_archiver.model_packaging import generate_model_archive as run; run()"
        subprocess.run([sys.executable, "-c", archiver, *arguments], check=True, cwd=folder, timeout=60)
    return store


@pytest.fixture(scope="module")
def server(folder: Path, store: Path) -> Iterator[RunningServer]:
    """Serves "echo" and "fragile", with tokens that soon expire."""
    settings = folder / "short-tokens.properties"
    text = base_config(None).read_text()
    settings.write_text(text.replace("expiration_min=60", f"expiration_min={TOKEN_SECONDS / 60}"))
    options = ServeOptions(
        model_store=store,
        models=("echo.mar", "fragile=fragile.mar"),
        run_dir=folder / "run",
        ports=PORTS,
        ts_config=settings,
        timeout=60,
    )
    started = start_server(options)
    try:
        yield started
    finally:
        stop_server(folder / "run")
        assert server_processes(started.run_dir) == []


@pytest.fixture
def client(server: RunningServer) -> Iterator[ManagementClient]:
    with management_client(server.run_dir, server.state) as made:
        yield made


def ask(server: RunningServer, model: str, body: bytes = b"{}") -> httpx.Response:
    endpoint = find_endpoint("inference", run_dir=server.run_dir.root, url=None, token=None)
    return predict(endpoint, model, body, timeout=20)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def pids(client: ManagementClient, model: str) -> set[int]:
    return {worker.pid for worker in client.workers(model) if worker.ready}


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_handler_gets_the_bytes_that_were_sent(server: RunningServer) -> None:
    assert ask(server, "echo", b'{"x":  1.50}').content == b'bytearray {"x":  1.50}'
    assert server.workers == {"echo": 1, "fragile": 1}


def test_batches_are_sent_by_threads_that_stay(server: RunningServer) -> None:
    """Java starts a thread for each batch where it sees one or two cores and nobody says otherwise."""
    ask(server, "echo")
    threads = Path(f"/proc/{server.state.pid}/task").glob("*/comm")
    assert any(name.read_text().startswith("ForkJoinPool") for name in threads)


def test_only_loopback_is_listened_on(server: RunningServer) -> None:
    connections = psutil.Process(server.state.pid).net_connections("tcp")
    listening = [each.laddr for each in connections if each.status == psutil.CONN_LISTEN]
    # Three of HTTP, two of gRPC.
    assert len(listening) == 5
    assert all(address.ip.endswith("127.0.0.1") for address in listening)


def test_without_a_token_nothing_is_answered(server: RunningServer) -> None:
    for url in (f"{server.state.inference}/ping", f"{server.state.management}/models"):
        assert "InvalidKeyException" in httpx.get(url, trust_env=False).text
    assert httpx.get(f"{server.state.metrics}/metrics", trust_env=False).status_code == 200


def test_expired_tokens_are_renewed(server: RunningServer, client: ManagementClient) -> None:
    before = json.loads(server.run_dir.key_file.read_text())
    time.sleep(TOKEN_SECONDS)
    assert ask(server, "echo").is_success
    assert "echo" in client.models()
    after = json.loads(server.run_dir.key_file.read_text())
    assert after["inference"]["key"] != before["inference"]["key"]
    assert after["management"]["key"] != before["management"]["key"]


def test_only_archives_of_the_store_may_be_registered(
    server: RunningServer, client: ManagementClient, folder: Path
) -> None:
    endpoint = find_endpoint("management", run_dir=server.run_dir.root, url=None, token=None)
    with httpx.Client(base_url=endpoint.url, auth=endpoint.auth, trust_env=False) as http:
        for url in (f"file://{folder}/flag.mar", "http://127.0.0.1:9/x.mar"):
            assert "does not match any allowed URL" in http.post("/models", params={"url": url}).text
        # Asynchronous: a synchronous call would hold up everybody else's.
        params = {"url": "echo.mar", "model_name": "again", "synchronous": "false"}
        assert http.post("/models", params=params).is_success
    scale_model(client, "again", 1, timeout=60)
    assert ask(server, "again").is_success


def test_one_run_directory_one_server(server: RunningServer, store: Path) -> None:
    with pytest.raises(ServingError, match=f"already runs in .* \\(pid {server.state.pid}"):
        start_server(ServeOptions(model_store=store, models=("echo.mar",), run_dir=server.run_dir.root))
    assert ask(server, "echo").is_success


def test_a_taken_port_is_named_with_its_holder(server: RunningServer, store: Path, tmp_path: Path) -> None:
    port = int(server.state.management.rpartition(":")[2])
    options = ServeOptions(
        model_store=store,
        models=("echo.mar",),
        run_dir=tmp_path / "run",
        ports={**PORTS, "management_address": port},
    )
    with pytest.raises(ServingError, match=rf"management port {port} is taken.*--management-port"):
        start_server(options)


def test_scaling_up_and_down(server: RunningServer, client: ManagementClient) -> None:
    first = pids(client, "fragile")
    assert scale_model(client, "fragile", 2, marks=LogMarks.now(server.run_dir), timeout=60).before == 1
    both = pids(client, "fragile")
    assert len(both) == 2
    assert first < both
    scale_model(client, "fragile", 1, marks=LogMarks.now(server.run_dir), timeout=60)
    until(lambda: sum(lives(pid) for pid in both) == 1)
    scale_model(client, "fragile", 0, marks=LogMarks.now(server.run_dir), timeout=60)
    assert ask(server, "fragile").status_code == 503
    scale_model(client, "fragile", 1, marks=LogMarks.now(server.run_dir), timeout=60)
    assert ask(server, "fragile").content.decode() == str(*pids(client, "fragile"))


def test_a_killed_worker_comes_back(server: RunningServer, client: ManagementClient) -> None:
    (victim,) = pids(client, "fragile")
    psutil.Process(victim).kill()
    until(lambda: victim not in pids(client, "fragile"))
    scale_model(client, "fragile", 1, timeout=60)
    assert ask(server, "fragile").content != str(victim).encode()


def test_workers_that_cannot_load_are_told_with_the_reason(
    server: RunningServer, client: ManagementClient, flag: Path
) -> None:
    flag.write_text('no room for table "t_user"')
    try:
        with pytest.raises(
            ServingError, match=r'(?s)MemoryError: no room for table "t_user".*1 of 2.*dlrm scale 1'
        ):
            scale_model(client, "fragile", 2, marks=LogMarks.now(server.run_dir), timeout=60)
    finally:
        flag.unlink()
    scale_model(client, "fragile", 1, timeout=60)
    assert ask(server, "fragile").is_success


def test_a_model_that_does_not_load_leaves_nothing_running(store: Path, tmp_path: Path) -> None:
    options = ServeOptions(
        model_store=store, models=("broken.mar",), run_dir=tmp_path / "run", ports=PORTS, timeout=60
    )
    with pytest.raises(
        ServingError, match='did not load: ValueError: table "t_user": the file is 3 bytes short'
    ):
        start_server(options)
    assert server_processes(RunDir.at(tmp_path / "run")) == []
    assert running_server(tmp_path / "run") is None


def test_a_second_server_in_the_foreground_ends_at_ctrl_c(
    server: RunningServer, store: Path, tmp_path: Path
) -> None:
    arguments = ["serve", "--foreground", "--json", "--no-token-auth", "--model-store", str(store)]
    arguments += ["--models", "echo.mar", "--port", "0", "--management-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-c", "from dlrm_factory.cli import main; main()", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = ""
        while not printed.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "it ended before it was ready"
            printed += line
        found = json.loads(printed)
        assert found["token_file"] is None
        body = httpx.post(
            f"{found['inference']}/predictions/echo",
            content=b"x",
            headers={"Content-Type": "application/json"},
        )
        assert body.content == b"bytearray x"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 0
    assert server_processes(RunDir.at(tmp_path / ".dlrm")) == []
    assert ask(server, "echo").is_success


def test_a_start_that_takes_too_long_and_orphans_of_a_killed_server(store: Path, tmp_path: Path) -> None:
    options = ServeOptions(
        model_store=store, models=("slow.mar",), run_dir=tmp_path / "run", ports=PORTS, timeout=3
    )
    with pytest.raises(ServingError, match=r"time-out: .*--timeout"):
        start_server(options)
    run_dir = RunDir.at(tmp_path / "run")
    assert server_processes(run_dir) == []
    started = start_server(
        ServeOptions(
            model_store=store, models=("echo.mar",), run_dir=tmp_path / "run", ports=PORTS, timeout=60
        )
    )
    psutil.Process(started.state.pid).kill()
    until(lambda: not lives(started.state.pid))
    assert running_server(tmp_path / "run") is None
    stop_server(tmp_path / "run")
    assert server_processes(run_dir) == []
    assert not run_dir.key_file.exists()
