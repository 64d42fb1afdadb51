"""Thousands of broken requests among good ones, at a real TorchServe: only the broken ones may suffer."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from support.batches import random_state
from support.broken_bodies import JSON, Attempt, GoodRequest, attempts, good_request
from support.depth import examples
from support.server import serving

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer, probabilities
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import RunningServer, find_endpoint, management_client
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.integration

SEED = 20_240_229
BROKEN, GOOD, GONE = examples(1600), examples(600), examples(60)
CONNECTIONS = 48
NO_LONGER_THAN_S = 20.0  # one answer, under that load
# Long enough for what came together to be served together, so that good and broken requests share batches.
SERVING = ServingOptions(batch_size=64, max_batch_delay_ms=5, compile="off")


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """A server, and the model that it serves, called directly."""

    server: RunningServer
    scorer: Scorer

    def scores(self, rows: list[dict[str, Any]]) -> list[float]:
        encoder = FeatureEncoder(self.scorer.declaration)
        columns = {name: [row.get(name) for row in rows] for name in encoder.names}
        return probabilities(self.scorer.logits(encoder.encode(columns, len(rows)))).tolist()

    def service_answer(self, body: bytes) -> tuple[int, Any]:
        """Answer of the handler's core to ``body`` alone."""
        (answer,) = DLRMService(self.scorer).handle([Request(bytearray(body))])
        return answer.status, json.loads(answer.body)

    def pids(self) -> list[int]:
        with management_client(self.server.run_dir, self.server.state) as client:
            return [worker.pid for worker in client.workers("tiny") if worker.ready]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder = tmp_path_factory.mktemp("fuzz")
    declaration = msgspec.structs.replace(tiny(), serving=SERVING)
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(
        folder / "tiny.safetensors", folder / "store" / "tiny", model_name="tiny", archive_format="directory"
    )
    with serving(folder / "store", "tiny=tiny", run_dir=folder / "run") as server:
        yield Fuzzed(server=server, scorer=Scorer.load(folder / "store" / "tiny"))


@dataclass
class Tally:
    """Statuses and complaints that came back."""

    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, kind: str, response: httpx.Response | httpx.RequestError, complaint: str | None) -> None:
        if isinstance(response, httpx.RequestError):
            self.wrong.append(f"{kind}: no answer ({response!r})\n  sent {response.request.content[:300]!r}")
            return
        self.statuses[kind, response.status_code] += 1
        if complaint is not None:
            sent = response.request.content[:300]
            self.wrong.append(f"{kind}: {complaint}\n  sent {sent!r}\n  got {response.text[:300]}")

    def __str__(self) -> str:
        counts: dict[str, list[str]] = collections.defaultdict(list)
        for (kind, status), count in sorted(self.statuses.items()):
            counts[kind].append(f"{count} x {status}")
        return "\n".join(f"{kind:16} {', '.join(each)}" for kind, each in counts.items())


def test_only_broken_requests_suffer(fuzzed: Fuzzed) -> None:
    before, started = fuzzed.pids(), time.perf_counter()
    tally = asyncio.run(Storm(fuzzed).blow())
    seconds = time.perf_counter() - started
    print(
        f"\n{tally}\n{tally.statuses.total()} answers in {seconds:.0f} s, the slowest in {tally.slowest:.2f} s"
    )
    assert not tally.wrong, f"{len(tally.wrong)} wrong answers\n" + "\n".join(tally.wrong[:10])
    assert tally.statuses.total() == BROKEN + GOOD
    assert fuzzed.pids() == before
    assert len(before) == 1


class Storm:
    """All requests, in random order, over many connections at once."""

    def __init__(self, fuzzed: Fuzzed) -> None:
        self.fuzzed = fuzzed
        self.rng = random.Random(SEED)
        self.tally = Tally()
        self.endpoint = find_endpoint("inference", run_dir=fuzzed.server.run_dir.root, url=None, token=None)

    async def blow(self) -> Tally:
        work: list[Attempt | GoodRequest | None] = [
            *attempts(BROKEN, self.rng),
            *(good_request(self.rng) for _ in range(GOOD)),
            *[None] * GONE,
        ]
        self.rng.shuffle(work)
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(
            base_url=self.endpoint.url,
            auth=self.endpoint.auth,
            timeout=NO_LONGER_THAN_S,
            trust_env=False,
            limits=limits,
        ) as client:
            todo = iter(work)
            await asyncio.gather(*(self._send_all(client, todo) for _ in range(CONNECTIONS)))
        return self.tally

    async def _send_all(
        self, client: httpx.AsyncClient, todo: Iterator[Attempt | GoodRequest | None]
    ) -> None:
        for each in todo:
            if each is None:
                await self._hang_up()
            elif isinstance(each, Attempt):
                await self._send_broken(client, each)
            else:
                await self._send_good(client, each)

    async def _send_good(self, client: httpx.AsyncClient, request: GoodRequest) -> None:
        body = json.dumps(request.body).encode()
        response = await self._post(client, "/predictions/tiny", body, JSON)
        complaint: str | None = "a good request is refused"
        if isinstance(response, httpx.Response) and response.status_code == 200:
            scores = self.fuzzed.scores(request.rows)
            right = {"score": scores[0]} if "float_features" in request.body else {"predictions": scores}
            complaint = None if alike(response.json(), right) else f"the right answer is {right}"
        self.tally.add("good", response, complaint)

    async def _send_broken(self, client: httpx.AsyncClient, attempt: Attempt) -> None:
        path = attempt.path.format(model="tiny")
        response = await self._post(client, path, attempt.body, attempt.headers)
        self.tally.add(attempt.kind, response, self._complaint(attempt, response))

    def _complaint(self, attempt: Attempt, response: httpx.Response | httpx.RequestError) -> str | None:
        if isinstance(response, httpx.RequestError):
            return None
        status = response.status_code
        if attempt.verdict == "refused":
            return None if 400 <= status < 500 else f"status {status} for a broken request"
        if attempt.verdict == "no fault of ours":
            return None if status < 500 or is_of_the_frontend(response) else f"status {status}"
        expected, answer = self.fuzzed.service_answer(attempt.body)
        if status != expected or status >= 500:
            return f"status {status}, alone it gets {expected}"
        return None if status != 200 or alike(response.json(), answer) else f"alone it gets {answer}"

    async def _post(
        self, client: httpx.AsyncClient, path: str, body: bytes, headers: Mapping[str, str]
    ) -> httpx.Response | httpx.RequestError:
        started = time.perf_counter()
        try:
            return await client.post(path, content=body, headers=headers)
        except httpx.RequestError as error:
            return error
        finally:
            self.tally.slowest = max(self.tally.slowest, time.perf_counter() - started)

    async def _hang_up(self) -> None:
        """Sends a request, part of one or nonsense, and goes away without waiting for an answer."""
        url = urlsplit(self.endpoint.url)
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        body = json.dumps(good_request(self.rng).body).encode()
        head = b"POST /predictions/tiny HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        whole = head + self._authorization() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        writer.write(
            self.rng.choice(
                [whole, whole, whole[: -len(body) // 2], whole[:40], b"\x16\x03 nonsense\r\n\r\n"]
            )
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _authorization(self) -> bytes:
        tokens = json.loads(self.fuzzed.server.run_dir.key_file.read_text())
        return f"Authorization: Bearer {tokens['inference']['key']}\r\n".encode()


def is_of_the_frontend(response: httpx.Response) -> bool:
    """Test whether TorchServe answered without asking the worker: it gives 500 for a form that it cannot read."""
    return response.status_code == 500 and response.json()["type"] == "ErrorDataDecoderException"


def alike(found: Any, right: Any) -> bool:
    """Test whether two JSON values are the same, numbers within 1e-5."""
    if isinstance(right, dict) and isinstance(found, dict):
        return right.keys() == found.keys() and all(alike(found[key], right[key]) for key in right)
    if isinstance(right, list) and isinstance(found, list):
        return len(right) == len(found) and all(map(alike, found, right))
    if isinstance(right, float) and isinstance(found, (float, int)):
        return math.isclose(found, right, rel_tol=0, abs_tol=1e-5)
    return bool(found == right)


def test_the_comparison_sees_a_wrong_score() -> None:
    assert alike({"predictions": [0.5, 1.0]}, {"predictions": [0.500001, 1.0]})
    assert not alike({"predictions": [0.5]}, {"predictions": [0.5001]})
    assert not alike({"predictions": [0.5]}, {"predictions": [0.5, 0.5]})


@pytest.mark.parametrize("megabytes", [5, 70])
def test_long_strings(fuzzed: Fuzzed, megabytes: int) -> None:
    """5 MB reach the model, which hashes an id of any length; 70 MB are over TorchServe's own limit."""
    before = fuzzed.pids()
    rng = random.Random(SEED)
    text = "ü" * (megabytes * 500_000)
    endpoint = find_endpoint("inference", run_dir=fuzzed.server.run_dir.root, url=None, token=None)
    with httpx.Client(
        base_url=endpoint.url, auth=endpoint.auth, timeout=NO_LONGER_THAN_S, trust_env=False
    ) as client:
        for body, statuses in [
            ({"instances": [{"user_id": text}]}, {200} if megabytes == 5 else {413}),
            ({"instances": [{"item_id": text}]}, {400, 413}),
            ({"instances": [{text: 1}]}, {400, 413}),
            ({text: 1}, {400, 413}),
            (text, {400, 413}),
        ]:
            try:
                response = client.post(
                    "/predictions/tiny", content=json.dumps(body, ensure_ascii=False).encode(), headers=JSON
                )
            except httpx.NetworkError:
                # TorchServe refuses and closes before all has been sent.
                assert megabytes == 70
                continue
            assert response.status_code in statuses, response.text[:500]
            assert len(response.content) < 2000
        good = good_request(rng)
        response = client.post("/predictions/tiny", content=json.dumps(good.body).encode(), headers=JSON)
        assert response.status_code == 200
    assert fuzzed.pids() == before
