"""The entry, driven as TorchServe's worker drives it; no server is started here."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.batches import random_state

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import add_goldens
from dlrm_factory.host.worker_file import WorkerFolder, files_of_workers, worker_folder
from dlrm_factory.monitoring.families import READS
from dlrm_factory.monitoring.metrics_file import SUFFIX, read_metrics_file
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_folder, seal_weights
from handler.dlrm_handler import DLRMHandler
from handler.worker import TORCHREC_CALLS

REPOSITORY = Path(__file__).parents[2]
BODIES = [
    b'{"instances": [{"price": 9.5, "user_id": "u17", "item_tags": [3, 9]}, {}]}',
    b'{"instances": [{"item_id": 1500}]}',
    b'{"inputs": {"price": [9.5]}, "output": "logit"}',
    b'{"inputs": {"price": [' + b"1," * 20 + b"1]}}",
]


class FakeContext:
    """TorchServe's context, as far as a handler uses it."""

    def __init__(self, model_dir: Path) -> None:
        self.system_properties = {"model_dir": str(model_dir)}
        self.metrics = None
        self.model_name = "ads"
        self.model_yaml_config: dict[str, object] = {}
        self.manifest = {"model": {"modelVersion": "2.1"}}
        self.headers: dict[int, dict[str, str]] = {}
        self.statuses: dict[int, tuple[int, str]] = {}
        self.content_types: dict[int, str] = {}
        self.request_ids: dict[int, str] | None = None
        self.response_headers: dict[tuple[int, str], str] = {}

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        return self.headers.get(idx, {"explain": "False"})

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = (code, phrase)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return {key: value for (place, key), value in self.response_headers.items() if place == idx}

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.response_headers[idx, key] = value

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    declaration = msgspec.structs.replace(
        tiny(), serving=ServingOptions(max_samples=20, threads=1, compile="off")
    )
    save_checkpoint(folder / "checkpoint.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(folder / "checkpoint.safetensors"), folder / "model")
    return folder / "model"


@pytest.fixture
def settled() -> Iterator[None]:
    """Undoes what a worker does to its whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()
    logging.getLogger(TORCHREC_CALLS).setLevel(logging.NOTSET)


@pytest.mark.usefixtures("settled")
def test_one_body_and_status_a_request(proven: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler, context = DLRMHandler(), FakeContext(proven)
    with caplog.at_level(logging.INFO, logger="handler.dlrm_handler"):
        handler.initialize(context)
    assert torch.get_num_threads() == 1
    assert gc.get_freeze_count() > 0
    (line,) = (record.getMessage() for record in caplog.records if record.name == "handler.dlrm_handler")
    assert line.startswith(f"Loaded the model in {proven} in ")

    bodies = handler.handle([{"body": bytearray(body)} for body in BODIES], context)
    assert all(type(body) is bytes for body in bodies)
    assert context.statuses == {
        0: (200, "OK"),
        1: (400, "Bad Request"),
        2: (200, "OK"),
        3: (413, context.statuses[3][1]),
    }
    assert all(phrase.isascii() and phrase.isprintable() for _, phrase in context.statuses.values())
    assert context.content_types == dict.fromkeys(range(4), "application/json")
    direct = DLRMService(Scorer.load(proven)).handle([Request(body, error_key=True) for body in BODIES])
    assert bodies == [answer.body for answer in direct]


@pytest.mark.usefixtures("settled")
def test_ids_of_requests_come_back_and_no_request_is_answered_twice(
    proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handler, context = DLRMHandler(), FakeContext(proven)
    handler.initialize(context)
    # Another worker of the model, which is ended as it answers request "b".
    other = WorkerFolder(worker_folder(str(proven)), 1)
    other.hold(["b"])
    other.begin_answers()
    context.headers = {1: {"x-dlrm-request-id": "7f"}}
    context.request_ids = {0: "a", 1: "b", 2: "c"}
    bodies = handler.handle([{"body": bytearray(BODIES[0])} for _ in range(3)], context)
    assert [context.statuses[i][0] for i in range(3)] == [200, 503, 200]
    assert bodies[0] == bodies[2] != bodies[1]
    assert context.response_headers == {(1, "x-dlrm-request-id"): "7f"}


def test_a_broken_archive_is_one_clear_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(WeightsError) as caught:
        DLRMHandler().initialize(FakeContext(tmp_path))
    (record,) = caplog.records
    assert record.getMessage() == f"The archive in {tmp_path} cannot be served: {caught.value}"
    assert record.exc_info is None


@pytest.fixture
def proven(sealed: Path, tmp_path: Path) -> Path:
    """Sealed weights with golden requests."""
    folder = Path(shutil.copytree(sealed, tmp_path / "proven"))
    add_goldens(folder)
    return folder


@pytest.mark.usefixtures("settled")
def test_goldens_are_replayed_before_a_worker_is_ready(
    proven: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler, context = DLRMHandler(), FakeContext(proven)
    with caplog.at_level(logging.WARNING, logger="handler"):
        handler.initialize(context)
    assert caplog.records == []
    assert handler.handle([{"body": bytearray(BODIES[0])}], context)[0].startswith(b'{"predictions":[')


@pytest.mark.usefixtures("settled")
def test_a_worker_that_cannot_reproduce_the_goldens_never_serves(
    proven: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Weights a little off, sealed with the first one's goldens: every file is whole, the scores are not.
    weights = load_file(proven / "dense.safetensors")
    save_file({key: weight * 1.01 for key, weight in weights.items()}, proven / "dense.safetensors")
    seal_folder(proven)
    handler = DLRMHandler()
    with pytest.raises(WeightsError, match=r"golden request 1 of 16 \(alone\) gives") as caught:
        handler.initialize(FakeContext(proven))
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.getMessage() == f"The archive in {proven} cannot be served: {caught.value}"
    assert not hasattr(handler, "_service")


@pytest.mark.usefixtures("settled")
def test_an_archive_without_goldens_warns(sealed: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="handler"):
        DLRMHandler().initialize(FakeContext(sealed))
    (record,) = caplog.records
    assert "has no golden requests" in record.getMessage()


LOAD_AND_PREDICT = """
import json, sys
from types import SimpleNamespace
from ts.model_loader import TsModelLoader
folder, bodies = sys.argv[1], json.load(sys.stdin)
service = TsModelLoader().load("dlrm", folder, "dlrm_handler.py", None, 4, None)
service.context.metrics = SimpleNamespace(add_time=lambda *a: None)
service.set_cl_socket(None)
batch = [
    {"requestId": b"%d" % i, "headers": [{"name": b"explain", "value": b"False"}], "parameters": [
        {"name": "body", "contentType": "application/json", "value": bytearray(body.encode())}]}
    for i, body in enumerate(bodies)
]
frame = service.predict(batch)
context = service.context
import dlrm_factory.scorer, dlrm_factory.requests.service, time
time.sleep(1.5)  # metrics are counted twice a second
print(json.dumps({
    "code": int.from_bytes(frame[:4], "big"),
    "statuses": [context.get_response_status(i) for i in range(len(bodies))],
    "code_from": [dlrm_factory.scorer.__file__, dlrm_factory.requests.service.__file__],
    "frame": frame.decode("latin-1"),
}))
"""


@pytest.mark.slow
def test_torchserve_loads_the_archives_own_code(sealed: Path, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    shutil.copytree(sealed, root)
    for package in ("dlrm_factory", "handler"):
        shutil.copytree(REPOSITORY / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "handler" / "dlrm_handler.py", root)
    seal_folder(root)
    # The repository comes first on the path, as an installed older version would; the archive must still win.
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_PREDICT, str(root)],
        input=json.dumps([body.decode() for body in BODIES]),
        env={"PATH": "", "PYTHONPATH": f"{REPOSITORY}:{root}", "TEMP": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 200, done.stderr
    (path,) = files_of_workers(SUFFIX, tmp_path)
    reading = read_metrics_file(path)
    reads = next(place for place in reading.head.families if place.family == READS)
    by_reader = dict(zip(reads.series, reading.family(reads)[:, 0].tolist(), strict=True))
    assert by_reader["gathered", "read"] + by_reader["rows", "read"] + by_reader["columns", "read"] == 2
    assert by_reader["reference", "read"] == 2
    assert [status for status, _ in found["statuses"]] == [200, 400, 200, 413]
    assert all(path.startswith(str(root)) for path in found["code_from"])
    expected = DLRMService(Scorer.load(sealed)).handle([Request(body, error_key=True) for body in BODIES])
    for answer in expected:
        assert answer.body.decode() in found["frame"]
