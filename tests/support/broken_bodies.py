"""Bodies that no client should send, for the `tiny` preset, from one seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Attempt", "GoodRequest", "attempts", "good_request"]

JSON = {"Content-Type": "application/json"}

Verdict = Literal["refused", "as the service", "no fault of ours"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One request that is broken in some way.

    Fields:
        kind: the way, for messages.
        verdict: "refused" is any 4xx; "as the service" is what `DLRMService` answers to these bytes alone (a
            flipped byte may leave a request valid); "no fault of ours" is anything but a 5xx of the worker.
    """

    kind: str
    body: bytes
    verdict: Verdict = "refused"
    path: str = "/predictions/{model}"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


@dataclass(frozen=True, kw_only=True)
class GoodRequest:
    """A valid ``body``, and the samples that it holds, by name."""

    rows: list[dict[str, Any]]
    body: dict[str, Any]


def good_request(rng: random.Random) -> GoodRequest:
    """A valid request of one of three shapes, 1 to 4 samples, 1 in the last."""
    rows = [_row(rng) for _ in range(rng.randint(1, 4))]
    shape = rng.randrange(3)
    if shape == 0:
        rows = [{k: v for k, v in row.items() if rng.random() > 0.2} for row in rows]
        return GoodRequest(rows=rows, body={"instances": rows})
    if shape == 1:
        return GoodRequest(
            rows=rows, body={"inputs": {name: [row[name] for row in rows] for name in rows[0]}}
        )
    bags = [[rows[0]["user_id"]], [rows[0]["item_id"]], rows[0]["item_tags"]]
    body = {
        "float_features": [rows[0]["price"], rows[0]["age_days"]],
        "id_list_features.lengths": [len(bag) for bag in bags],
        "id_list_features.values": [each for bag in bags for each in bag],
    }
    return GoodRequest(rows=rows[:1], body=body)


def _row(rng: random.Random) -> dict[str, Any]:
    return {
        "price": round(rng.gauss(0, 3), 3),
        "age_days": rng.randint(0, 90),
        "user_id": rng.choice([f"u{rng.randrange(999)}", rng.randrange(2**62), "ü\u0000"]),
        "item_id": rng.randrange(200),
        "item_tags": [rng.randrange(50) for _ in range(rng.randint(0, 5))],
    }


def attempts(count: int, rng: random.Random) -> Iterator[Attempt]:
    """``count`` broken requests, every kind in turn."""
    for i in range(count):
        yield KINDS[i % len(KINDS)](rng)


def _raw(rng: random.Random) -> bytes:
    return json.dumps(good_request(rng).body, ensure_ascii=rng.random() < 0.5).encode()


def _cut(rng: random.Random) -> Attempt:
    raw = _raw(rng)
    return Attempt(kind="cut short", body=raw[: rng.randrange(len(raw))])


def _flipped(rng: random.Random) -> Attempt:
    raw = bytearray(_raw(rng))
    for _ in range(rng.randint(1, 3)):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return Attempt(kind="flipped bits", body=bytes(raw), verdict="as the service")


def _shuffled(rng: random.Random) -> Attempt:
    raw = _raw(rng)
    a, b = sorted(rng.sample(range(len(raw)), 2))
    body = raw[:a] + raw[b:] + raw[a:b] if rng.random() < 0.5 else raw[:b] + raw[a:]
    return Attempt(kind="moved bytes", body=body, verdict="as the service")


def _noise(rng: random.Random) -> Attempt:
    return Attempt(kind="noise", body=b"\xff" + rng.randbytes(rng.randrange(300)))


def _deep(rng: random.Random) -> Attempt:
    depth = rng.choice([30, 500, 5_000, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    nest = opened * depth + "1" + closed * depth
    body = rng.choice(
        [nest, f'{{"inputs": {{"price": {nest}}}}}', f'{{"instances": [{nest}]}}', opened * depth]
    )
    return Attempt(kind="deep nesting", body=body.encode())


# Wrong in any place where the feature stands: text that is put into the JSON as it is.
_WRONG_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e400",
    "9" * 5000,
    "1e39",
    '"3"',
    "true",
    "[1]",
    "{}",
]
_WRONG_ROWS = [
    "-1",
    "200",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "3.0",
    "1e2",
]
_WRONG_IDS = [
    "true",
    "1.5",
    "{}",
    "[[1]]",
    "18446744073709551616",
    '"\\ud800"',
    '"\\udc00x"',
    "NaN",
    "9" * 400,
]
_WRONG = {
    "price": _WRONG_NUMBERS,
    "age_days": _WRONG_NUMBERS,
    "user_id": _WRONG_IDS,
    "item_id": [*_WRONG_ROWS, *_WRONG_IDS, '"x"'],
    "item_tags": ["[-1]", "[1, null]", "[50]", "[1, [2]]", json.dumps([1] * 9), *_WRONG_IDS],
}


def _wrong_value(rng: random.Random) -> Attempt:
    name = rng.choice(list(_WRONG))
    rows: list[dict[str, Any]] = [_row(rng) for _ in range(rng.randint(1, 5))]
    rows[rng.randrange(len(rows))][name] = "@@"
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    body = json.dumps({"instances": rows} if rng.random() < 0.5 else {"inputs": columns})
    return Attempt(kind="wrong value", body=body.replace('"@@"', rng.choice(_WRONG[name])).encode())


def _wrong_structure(rng: random.Random) -> Attempt:
    good = good_request(rng).body
    key = rng.choice(list(good))
    broken = rng.choice([None, 3, "x", True, {"a": 1}, [[1]], [None]])
    body: Any = rng.choice(
        [
            {**good, key: broken},
            {**good, "instance": []},
            {**good, "output": rng.choice(["logits", None, 1, []])},
            {**good, "inputs": {"price": [1]}, "instances": []},
            [good],
            {"inputs": {"price": [1, 2], "item_id": [1]}},
            {"inputs": {}},
            {"instances": [{"prise": 1}]},
            {"instances": [{"\ud800": 1, "\x00": 2}]},
            {
                "float_features": [1],
                "id_list_features.lengths": [1, 1, 1],
                "id_list_features.values": [1, 1, 1],
            },
            {
                "float_features": [1, 1],
                "id_list_features.lengths": [rng.choice([-1, 2**31, 2**40, 1.0]), 1, 1],
                "id_list_features.values": [1, 1, 1],
            },
            {},
        ]
    )
    return Attempt(kind="wrong structure", body=json.dumps(body).encode())


def _not_an_object(rng: random.Random) -> Attempt:
    texts = ["", " \n", "null", "3", '"x"', "[]", "NaN", "\x00", "{", "}", '{"a"}', "{'a': 1}", "{} {}", "//"]
    return Attempt(kind="not an object", body=rng.choice(texts).encode())


def _encoding(rng: random.Random) -> Attempt:
    text = json.dumps({"instances": [{"user_id": "ü"}]}, ensure_ascii=False)
    body = rng.choice(
        [text.encode("utf-16"), text.encode("utf-32"), text.encode("latin-1"), text.encode("utf-8-sig")]
    )
    return Attempt(kind="wrong encoding", body=body)


def _duplicates(rng: random.Random) -> Attempt:
    row = json.dumps(_row(rng))[1:-1]
    body = rng.choice(
        [
            f'{{"instances": [{{{row}, {row}}}]}}',
            f'{{"instances": [], "instances": [{{{row}}}], "instances": 3}}',
        ]
    )
    return Attempt(kind="duplicate keys", body=body.encode(), verdict="as the service")


def _any_json(rng: random.Random) -> Attempt:
    body = {"instances": rng.choice([_tree(rng, 4), [_tree(rng, 3)], [{"item_tags": _tree(rng, 3)}]])}
    return Attempt(kind="any JSON", body=json.dumps(body).encode(), verdict="as the service")


def _tree(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind < 6:
        return rng.choice([None, True, rng.randint(-(2**70), 2**70), rng.gauss(0, 1e5), "\x00\ud800", "5", 7])
    many = range(rng.randrange(4))
    if kind == 6:
        return [_tree(rng, depth - 1) for _ in many]
    names = ["price", "user_id", "item_id", "item_tags", "ids", "weights", "", "\udfff"]
    return {rng.choice(names): _tree(rng, depth - 1) for _ in many}


def _ranking(rng: random.Random) -> Attempt:
    good = {"context": {"user_id": "u17"}, "candidates": [{"id": "a", "item_id": 3}], "top_k": 1}
    body = copy.deepcopy(good)
    changes: list[tuple[str, Any]] = [
        ("context", [3]), ("context", {"prise": 1}), ("context", {"user_id": {}}), ("candidates", 7),
        ("candidates", [3]), ("candidates", [{"item_id": 1500}]), ("candidates", {"item_id": [1], "price": []}),
        ("top_k", -1), ("top_k", 1.5), ("top_k", "x"), ("top_k", 2**70), ("candidates", [{"id": {}, "x": 1}]),
        ("instances", []),
    ]  # fmt: skip
    key, value = rng.choice(changes)
    body[key] = value
    return Attempt(kind="ranking", body=json.dumps(body).encode(), verdict="as the service")


def _kserve(rng: random.Random) -> Attempt:
    tensor = {"name": "price", "shape": [2], "datatype": "FP32", "data": [1.0]}
    tensor[rng.choice(list(tensor))] = rng.choice([None, -1, "x", [2**40], [[]], {}, float("nan")])
    path = rng.choice(["/predictions/{model}", "/v2/models/{model}/infer", "/v1/models/{model}:predict"])
    body = rng.choice(
        [{"inputs": [tensor]}, {"inputs": [tensor, tensor], "id": 3}, {"inputs": [7]}, {"inputs": []}]
    )
    return Attempt(kind="KServe", body=json.dumps(body).encode(), path=path)


def _content_type(rng: random.Random) -> Attempt:
    types = [
        "application/x-www-form-urlencoded", "text/plain", "application/octet-stream", "multipart/form-data",
        "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/vnd.apache.arrow.stream",
        "image/png", "x", "application/json;;", "text/plain; charset=nonsense",
    ]  # fmt: skip
    body = rng.choice(
        [_raw(rng), b"a=%zz&b=%", b"{%", rng.randbytes(99), b"--x\r\nContent-Disposition: \r\n\r\n", b""]
    )
    return Attempt(
        kind="content type",
        body=body,
        verdict="no fault of ours",
        headers={"Content-Type": rng.choice(types)},
    )


def _explanation(rng: random.Random) -> Attempt:
    cut = _cut(rng)
    return Attempt(kind="explanation", body=cut.body, path="/explanations/{model}")


KINDS: tuple[Callable[[random.Random], Attempt], ...] = (
    _cut, _flipped, _shuffled, _noise, _deep, _wrong_value, _wrong_value, _wrong_structure, _not_an_object,
    _encoding, _duplicates, _any_json, _ranking, _kserve, _content_type, _explanation,
)  # fmt: skip
