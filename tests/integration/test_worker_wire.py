"""The worker's own set-up in a real TorchServe: buffered reads, few lines, both profiles."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest
from support.batches import random_state
from support.server import inference_client, serving

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.monitoring.exporter import exporter_of
from dlrm_factory.tools.monitoring.status import read_status
from dlrm_factory.tools.server import RunningServer, find_endpoint
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

PROFILES = ("throughput", "latency")
BODY_SIZES = (200, 250_000, 300_000, 5_000_000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wire")
    for profile in PROFILES:
        options = ServingOptions(profile=profile, compile="off")
        declaration = msgspec.structs.replace(tiny(), serving=options)
        save_checkpoint(folder / f"{profile}.safetensors", declaration, random_state(declaration))
        archive_model(folder / f"{profile}.safetensors", folder / f"{profile}.mar", model_name=profile)
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[RunningServer]:
    models = [f"{profile}={profile}.mar" for profile in PROFILES]
    with serving(store, *models, run_dir=store / "run") as running:
        yield running


@pytest.fixture(scope="module")
def expected(store: Path, tmp_path_factory: pytest.TempPathFactory) -> DLRMService:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(store / "throughput.mar") as archive:
        archive.extractall(folder)
    return DLRMService(Scorer.load(folder))


def body(i: int, size: int) -> bytes:
    """A request of ``size`` bytes: JSON may end in spaces."""
    text = json.dumps(
        {"instances": [{"price": i / 7, "user_id": f"u{i}", "item_tags": [i % 50]}] * (1 + i % 3)}
    )
    return text.encode().ljust(size)


def post(client: httpx.Client, model: str, content: bytes) -> httpx.Response:
    return client.post(f"/predictions/{model}", content=content, headers={"Content-Type": "application/json"})


def close_to(found: bytes, wanted: bytes) -> bool:
    return json.loads(found)["predictions"] == pytest.approx(json.loads(wanted)["predictions"], abs=1e-5)


@pytest.mark.parametrize("model", PROFILES)
@pytest.mark.parametrize("size", BODY_SIZES)
def test_a_body_of_any_size_arrives_whole(
    server: RunningServer, expected: DLRMService, model: str, size: int
) -> None:
    content = body(3, size)
    (wanted,) = expected.handle([Request(content)])
    with inference_client(server) as client:
        assert close_to(post(client, model, content).content, wanted.body)


@pytest.mark.parametrize("model", PROFILES)
def test_many_at_once_each_get_their_own(server: RunningServer, expected: DLRMService, model: str) -> None:
    contents = [body(i, BODY_SIZES[i % 3]) for i in range(192)]
    wanted = [expected.handle([Request(content)])[0].body for content in contents]
    with inference_client(server) as client, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda content: post(client, model, content), contents))
    assert all(answer.status_code == 200 for answer in answers)
    assert all(close_to(answer.content, right) for answer, right in zip(answers, wanted, strict=True))


def test_profiles_reach_torchserve(server: RunningServer) -> None:
    endpoint = find_endpoint("management", run_dir=server.run_dir.root, url=None, token=None)
    with httpx.Client(base_url=endpoint.url, auth=endpoint.auth, trust_env=False) as client:
        sizes = {model: client.get(f"/models/{model}").json()[0]["batchSize"] for model in PROFILES}
    assert sizes == {"throughput": 64, "latency": 1}


def test_workers_read_ahead_and_print_little(server: RunningServer) -> None:
    with inference_client(server) as client:
        for i in range(50):
            assert post(client, "latency", body(i, 200)).status_code == 200
    printed = (server.run_dir.logs / "model_log.log").read_text()
    assert printed.count("Requests are read 256 KiB at a time") == len(PROFILES)
    assert "Backend received inference" not in printed
    assert "field by field" not in printed


def test_prediction_time_is_still_measured(server: RunningServer) -> None:
    with inference_client(server) as client:
        assert post(client, "latency", body(1, 200)).status_code == 200
    assert "PredictionTime{" in httpx.get(f"{server.state.metrics}/metrics", trust_env=False).text


def test_what_workers_answer_is_exported_beside_torchserves_own_metrics(server: RunningServer) -> None:
    exporter = exporter_of(server.run_dir.root)
    answered = 'dlrm_requests_total{code="200",model="latency",shape="rows",version="1.0"} '

    def count(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.startswith(answered)]
        return float(line.removeprefix(answered))

    # Workers count every half second: what was asked before must be in it.
    before = -1.0
    while before != (before := count(exporter.text())):
        time.sleep(1.2)
    with inference_client(server) as client:
        for i in range(5):
            assert post(client, "latency", b'{"instances": [{}]}').status_code == 200, i
    end = time.monotonic() + 30
    while count(exporter.text()) < before + 5 and time.monotonic() < end:
        time.sleep(0.2)
    text = exporter.text()
    assert count(text) == before + 5
    assert 'ts_inference_requests_total{model_name="latency"' in text
    assert 'dlrm_workers{engine="eager",model="throughput",version="1.0"} 1.0' in text
    found = read_status(server.run_dir.root, 0.6)
    assert {(each.model, each.workers, each.wanted, each.default) for each in found.models} == {
        (model, 1, 1, True) for model in PROFILES
    }
    assert all(each.private_bytes > 1e8 for each in found.models)
