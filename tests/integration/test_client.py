"""The client library against a real TorchServe."""

from __future__ import annotations

import asyncio
import collections
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest
from support.batches import random_state
from support.depth import examples
from support.server import serving

from dlrm_factory.client import (
    AsyncDLRMClient,
    ClientError,
    DLRMClient,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Retry,
    TooLarge,
    Unauthorized,
)
from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer, management_client, scale_model
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {
    "price": np.array([9.5, 3.0, -1.25], dtype=np.float32),
    "user_id": np.array(["u17", "4", "x"]),
    "item_id": np.array([12, 0, 199]),
    "item_tags": [np.array([3, 9]), [], [49]],
}
ROWS = [{name: column[i] for name, column in COLUMNS.items()} for i in range(3)]
KILLS = examples(2)
# Long enough for a worker to be started again.
PATIENT = Retry(attempts=40, first_delay=0.1, longest_delay=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(max_samples=100, compile="off"))
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(
        folder / "tiny.safetensors", folder / "store" / "dlrm", model_name="dlrm", archive_format="directory"
    )
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with serving(folder / "store", "dlrm=dlrm", run_dir=folder / "run") as server:
        yield server


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    scorer = Scorer.load(folder / "store" / "dlrm")
    plain = {name: [np.asarray(each).tolist() for each in column] for name, column in COLUMNS.items()}
    return probabilities(scorer.logits(FeatureEncoder(scorer.declaration).encode(plain, 3)))


@pytest.fixture
def client(server: RunningServer) -> Iterator[DLRMClient]:
    with DLRMClient(
        server.state.inference,
        management_url=server.state.management,
        key_file=server.token_file,
    ) as client:
        yield client


def test_rows_and_columns_score_as_the_model_called_directly(client, expected):
    assert client.score(inputs=COLUMNS) == pytest.approx(expected, abs=1e-5)
    assert client.score(instances=ROWS) == pytest.approx(expected, abs=1e-5)
    logits = client.score(inputs=COLUMNS, output="logit")
    assert probabilities(logits) == pytest.approx(expected, abs=1e-5)
    assert client.score(instances=[]).shape == (0,)


def test_candidates_come_best_first(client):
    user = {"user_id": "u17", "price": np.float32(9.5)}
    items = [{"id": f"sku-{i}", "item_id": i, "item_tags": np.array([i])} for i in range(20)]
    scores = client.score(
        instances=[{**user, "item_id": item["item_id"], "item_tags": item["item_tags"]} for item in items]
    )
    best = np.argsort(-scores, kind="stable")[:5]
    for candidates in (items, {name: [item[name] for item in items] for name in items[0]}):
        ranking = client.rank(context=user, candidates=candidates, top_k=5)
        assert [each.index for each in ranking] == best.tolist()
        assert [each.id for each in ranking] == [f"sku-{i}" for i in best]
        assert [each.score for each in ranking] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_a_contribution_is_what_leaving_the_feature_out_takes_away(client):
    row = {"price": 9.5, "user_id": "u17", "item_id": 12}
    (explanation,) = client.explain(instances=[row])
    assert explanation.score == pytest.approx(client.score(instances=[row])[0], abs=1e-5)
    for name in row:
        rest = {key: value for key, value in row.items() if key != name}
        drop = explanation.score - client.score(instances=[rest])[0]
        assert explanation.contributions[name] == pytest.approx(drop, abs=1e-5)
    assert explanation.contributions["item_tags"] == 0


def test_the_model_describes_itself(client):
    found = client.describe()
    assert (found.name, found.version, found.ready_workers) == ("dlrm", "1.0", 1)
    assert [feature["name"] for feature in found.details["dense_features"]] == ["price", "age_days"]
    assert found.details["limits"]["max_samples"] == 100


def test_errors_have_their_types(client, server):
    with pytest.raises(InvalidRequest, match="out of range") as invalid:
        client.score(instances=[{}, {"item_id": 1500}])
    assert (invalid.value.path, invalid.value.status) == ("$.instances[1].item_id", 400)
    with pytest.raises(TooLarge, match="max_samples"):
        client.score(inputs={"price": np.zeros(101)})
    for settings in ({"model": "dlmr"}, {"version": "7.0"}):
        with (
            DLRMClient(server.state.inference, key_file=server.token_file, **settings) as other,
            pytest.raises(ModelNotFound),
        ):
            other.score(instances=[])
    for settings in ({}, {"token": "wrong"}):
        with (
            DLRMClient(server.state.inference, **settings) as other,
            pytest.raises(Unauthorized),
        ):
            other.score(instances=[])


def test_an_expired_token_is_renewed_for_all_who_share_the_file(client, server):
    """Renewing makes the token that is in use invalid, as its end of life does."""
    client.score(instances=[])
    keys = json.loads(server.token_file.read_text())
    stale = {**keys, "inference": {**keys["inference"], "key": "expired"}}
    server.token_file.write_text(json.dumps(stale))
    clients = [
        DLRMClient(
            server.state.inference,
            management_url=server.state.management,
            key_file=server.token_file,
        )
        for _ in range(4)
    ]
    failures: list[Exception] = []

    def score(each: DLRMClient) -> None:
        try:
            with each:
                each.score(instances=[])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=score, args=(each,)) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert client.score(instances=[]).shape == (0,)


def test_many_tasks_share_one_client(server, expected):
    async def storm() -> list[np.ndarray]:
        async with AsyncDLRMClient(
            server.state.inference, key_file=server.token_file, max_connections=16
        ) as client:
            return await asyncio.gather(*(client.score(inputs=COLUMNS) for _ in range(100)))

    for scores in asyncio.run(storm()):
        assert scores == pytest.approx(expected, abs=1e-5)


def test_a_server_without_workers_is_waited_for(server, expected):
    settings = {"key_file": server.token_file}
    with management_client(server.run_dir, server.state) as management:
        scale_model(management, "dlrm", 0, timeout=60)
        with DLRMClient(server.state.inference, retry=None, **settings) as hasty, pytest.raises(Overloaded):
            hasty.score(inputs=COLUMNS)
        management.scale("dlrm", 1)
    with DLRMClient(server.state.inference, retry=PATIENT, **settings) as patient:
        assert patient.score(inputs=COLUMNS) == pytest.approx(expected, abs=1e-5)


class Statuses(httpx.HTTPTransport):
    """Notes the status of every answer, of those also that the client does not give to whoever asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        self.seen.add(response.status_code)
        return response


def test_nothing_is_lost_when_workers_are_killed(server, expected):
    with management_client(server.run_dir, server.state) as management:
        scale_model(management, "dlrm", 2, timeout=60)
        stop, counts, failures = threading.Event(), collections.Counter(), []
        transports = [Statuses() for _ in range(8)]

        def ask_on(number):
            with DLRMClient(
                server.state.inference, key_file=server.token_file, transport=transports[number]
            ) as client:
                while not stop.is_set():
                    try:
                        scores = client.score(inputs=COLUMNS)
                    except ClientError as error:
                        failures.append(error)
                        return
                    assert scores == pytest.approx(expected, abs=1e-5)
                    counts[number] += 1
                    time.sleep(0.005)  # or the new worker would have no core to start on

        threads = [threading.Thread(target=ask_on, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(KILLS):
                time.sleep(0.5)
                victim = next(worker for worker in management.workers("dlrm") if worker.ready)
                psutil.Process(victim.pid).kill()
                end = time.monotonic() + 60
                while (
                    victim.pid in {worker.pid for worker in management.workers("dlrm") if worker.ready}
                    or sum(worker.ready for worker in management.workers("dlrm")) < 2
                ):
                    assert time.monotonic() < end
                    time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        scale_model(management, "dlrm", 1, timeout=60)
    assert failures == []
    assert len(counts) == 8
    # Whoever asks without this client sees nothing that is not to be sent again.
    assert set().union(*(transport.seen for transport in transports)) == {200, 503}


def test_the_examples_of_the_document(server):
    text = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    for documented, real in [
        ("http://127.0.0.1:8080", server.state.inference),
        ("http://127.0.0.1:8081", server.state.management),
        (".dlrm/key_file.json", str(server.token_file)),
    ]:
        assert documented in text
        text = text.replace(documented, real)
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/client.md", "exec"), names)
    assert len(examples) >= 4
    names["client"].close()
