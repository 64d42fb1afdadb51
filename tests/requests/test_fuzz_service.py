"""Bodies that no client should send, with good ones among them: no fault of ours, and answers that are strict JSON."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from support.batches import random_state
from support.broken_bodies import attempts, good_request
from support.depth import examples
from support.handed import handle

from dlrm_factory.config import ServingOptions, tiny
from dlrm_factory.requests.formats.arrow import MEDIA_TYPE
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights

pa = pytest.importorskip("pyarrow")

BODIES = examples(6000)
SEED = 20_261_126
BATCH = 32
HTTP = {"explain": "False", "url_path": "", "Content-Type": "application/json"}
KSERVE = {"explain": "False", "Content-Type": "application/json"}
ODD = [
    "1e308", "-1e308", "1e38", "-3.4e38", "3.5e38", "1e-320", "-0.0", "NaN", "Infinity", "-Infinity", "9" * 60, "1e19",
    "9223372036854775807", "-9223372036854775808", "18446744073709551616", "true", "null", "[]", "{}", '""', '"NaN"',
    '"\\ud83d\\ude00"', '"\\ud83d"', '"\\u0000"', '"nan"', '{"ids":[3,9],"weights":[1e38,-1e38]}',
    '{"ids":[3],"weights":[3.4e38]}', '{"ids":[1],"weights":[NaN]}', "[3,3,3]", "[[1]]", "0.1", "1.0", "-1",
]  # fmt: skip
# A number, a string or a list of these, where a value may stand.
SPOTS = re.compile(r'(?<=[:\[,] )(-?\d+(?:\.\d+)?|"[^"\\]*"|\[[^\[\]]*\])(?=[,\]}])')

Sent = tuple[bytes, dict[str, str]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> DLRMService:
    folder = tmp_path_factory.mktemp("fuzz")
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(max_samples=100, compile="off"))
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    seal_weights(open_checkpoint(folder / "tiny.safetensors"), folder / "model")
    return DLRMService(Scorer.load(folder / "model"))


def rows_of(rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "price": rng.choice([0.5, 9, -3.25]),
            "user_id": f"u{rng.randrange(99)}",
            "item_id": rng.randrange(200),
        }
        | {"item_tags": [rng.randrange(50) for _ in range(rng.randrange(4))]}
        for _ in range(rng.randint(1, 3))
    ]


def rows(rng: random.Random) -> Sent:
    return json.dumps(good_request(rng).body).encode(), HTTP


def ranking(rng: random.Random) -> Sent:
    found = rows_of(rng)
    (context, *_) = [{"user_id": row.pop("user_id")} for row in found]
    candidates = [{"id": rng.choice(["NaN", "a", 7, "é"]), **row} for row in found]
    body = {"context": context, "candidates": candidates, "output": rng.choice(["logit", "probability"])}
    return json.dumps(body | ({"top_k": 2} if rng.random() < 0.5 else {})).encode(), HTTP


def kserve(rng: random.Random) -> Sent:
    found = rows_of(rng)
    tensors = [
        {"name": "price", "datatype": "FP32", "shape": [len(found)], "data": [row["price"] for row in found]},
        {
            "name": "item_id",
            "datatype": "INT64",
            "shape": [len(found)],
            "data": [row["item_id"] for row in found],
        },
        {
            "name": "user_id",
            "datatype": "BYTES",
            "shape": [len(found), 1],
            "data": [r["user_id"] for r in found],
        },
    ]
    return json.dumps({"id": "NaN", "inputs": tensors, "outputs": [{"name": "score"}]}).encode(), KSERVE


def kserve_binary(rng: random.Random) -> Sent:
    head, _ = kserve(rng)
    body = json.loads(head)
    raw = b""
    for tensor in body["inputs"][:1]:
        data = b"".join(rng.randbytes(4) for _ in tensor.pop("data"))
        tensor["parameters"] = {"binary_data_size": rng.choice([len(data), len(data), len(data) + 1])}
        raw += data
    text = json.dumps(body).encode()
    return text + raw, KSERVE | {"Inference-Header-Content-Length": str(len(text))}


def arrow(rng: random.Random) -> Sent:
    found = rows_of(rng)
    table = pa.table({name: [row[name] for row in found] for name in found[0]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return sink.getvalue(), HTTP | {"Content-Type": MEDIA_TYPE}


SHAPES: list[Callable[[random.Random], Sent]] = [rows, ranking, kserve, kserve_binary, arrow]


def odd(sent: Sent, rng: random.Random) -> Sent:
    """One value in the body made odd, or a byte of it where it is not text."""
    body, headers = sent
    text = body.decode("latin-1")
    spots = [match.span() for match in SPOTS.finditer(text)]
    if spots and rng.random() < 0.9:
        start, end = rng.choice(spots)
        return (text[:start] + rng.choice(ODD) + text[end:]).encode("latin-1"), headers
    place = rng.randrange(len(body))
    return body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :], headers


def sent_bodies(rng: random.Random) -> Iterator[Sent]:
    for shape in SHAPES:
        for _ in range(4):
            yield odd(shape(rng), rng)
    for attempt in attempts(8, rng):
        yield attempt.body, HTTP | attempt.headers


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def floats(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from floats(each)
    elif isinstance(value, float):
        yield value


def complaint(answer: Any, sent: bytes) -> str | None:
    if answer.status >= 500:
        return f"{answer.status} to {sent[:300]!r}: {answer.body[:300]!r}"
    if "json" not in answer.content_type:
        return None
    try:
        found = json.loads(answer.body, parse_constant=refuse)
    except ValueError as error:
        return f"{error}: {answer.body[:300]!r} to {sent[:300]!r}"
    if answer.status == 200 and not all(map(math.isfinite, floats(found))):
        return f"a score is not finite: {answer.body[:300]!r} to {sent[:300]!r}"
    return None


def test_odd_bodies_are_no_fault_of_ours_and_harm_no_neighbour(service: DLRMService) -> None:
    rng = random.Random(SEED)
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    while sum(statuses.values()) < BODIES:
        batch = list(sent_bodies(rng))
        rng.shuffle(batch)
        good = [shape(rng) for shape in (rows, ranking, kserve, arrow)]
        alone = [handle(service, [{"body": bytearray(body)}], [headers])[0] for body, headers in good]
        assert [answer.status for answer in alone] == [200] * len(good)
        places = sorted(rng.sample(range(len(batch)), len(good)))
        for place, each in zip(places, good, strict=True):
            batch.insert(place, each)
        answers = handle(
            service, [{"body": bytearray(body)} for body, _ in batch], [headers for _, headers in batch]
        )
        for (body, _), answer in zip(batch, answers, strict=True):
            statuses[answer.status] += 1
            if (said := complaint(answer, body)) is not None:
                wrong.append(said)
        for place, expected in zip(places, alone, strict=True):
            found = list(floats(json.loads(answers[place].body)))
            assert found == pytest.approx(list(floats(json.loads(expected.body))), abs=1e-5)
    assert not wrong, "\n".join(wrong[:10])
    assert service.read_counts.failures == 0
    print(statuses)
    assert statuses[200] > BODIES / 8
    assert statuses[400] > BODIES / 8
