"""Bodies of each Content-Type, as TorchServe hands them over: an answer, or a 4xx that helps."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any
from urllib.parse import quote_plus

import httpx
import pytest

pytestmark = pytest.mark.integration

FORM = "application/x-www-form-urlencoded"
ARROW = "application/vnd.apache.arrow.stream"
COLUMNS = {"price": [0.5, 2.0], "user_id": ["a=b", "17"], "item_tags": [[3, 9], []]}
TEXT = json.dumps({"inputs": COLUMNS})
PLAIN = json.dumps({"inputs": {"price": [0.5, 2.0]}})


def post(client: httpx.Client, body: str | bytes, kind: str | None, **headers: str) -> httpx.Response:
    if kind is not None:
        headers["Content-Type"] = kind
    return client.post("/predictions/tiny", content=body, headers=headers)


@pytest.fixture(scope="module")
def scores(client: httpx.Client) -> list[float]:
    response = post(client, TEXT, "application/json")
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (TEXT, None),
        (TEXT, "text/plain"),
        (TEXT, "application/json; charset=utf-8"),
        (TEXT, FORM),  # the = in it saves it: TorchServe takes what is before for a key
        (f"body={quote_plus(TEXT)}", FORM),
        (f"data={quote_plus(TEXT)}", FORM),
    ],
)
def test_json_that_arrives_whole(client: httpx.Client, scores: list[float], body: str, kind: str) -> None:
    response = post(client, body, kind)
    assert response.status_code == 200, response.text
    assert response.json()["predictions"] == scores


@pytest.mark.parametrize("tail", ["=", "&"])
def test_a_form_that_is_kept_whole(client: httpx.Client, tail: str) -> None:
    expected = post(client, PLAIN, "application/json").json()
    assert post(client, PLAIN + tail, FORM).json() == expected


def test_a_multipart_field(client: httpx.Client, scores: list[float]) -> None:
    response = client.post(
        "/predictions/tiny", files={"body": ("body.json", TEXT.encode(), "application/json")}
    )
    assert response.status_code == 200, response.text
    assert response.json()["predictions"] == scores


@pytest.mark.parametrize(
    ("body", "kind", "headers", "said"),
    [
        (PLAIN, FORM, {}, "the body was sent as a form"),
        ('{"instances": [{"user_id": "x&y"}]}', FORM, {}, "the body was sent as a form"),
        ("", FORM, {}, "there is no body"),
        ("", "application/json", {}, "is empty"),
        (
            gzip.compress(TEXT.encode(), mtime=0),
            "application/json",
            {"Content-Encoding": "gzip"},
            "compressed with gzip",
        ),
        (TEXT, ARROW, {}, "not an Arrow stream"),
        (TEXT.encode("utf-16"), "application/json; charset=utf-16", {}, "UTF-16"),
        ('{"instances": [{"user_id": "' + "x" * 5_000_000 + '"}', "application/json", {}, "is not JSON"),
    ],
)
def test_what_helps(client: httpx.Client, body: Any, kind: str, headers: dict[str, str], said: str) -> None:
    response = post(client, body, kind, **headers)
    assert response.status_code == 400, response.text
    assert said in response.json()["message"]


def test_too_long_a_bag_is_413(client: httpx.Client) -> None:
    response = post(client, json.dumps({"instances": [{"item_tags": [1] * 9}]}), "application/json")
    assert (response.status_code, response.json()["type"]) == (413, "LimitError")


def test_arrow_in_and_out(client: httpx.Client, scores: list[float]) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table(COLUMNS)
    body = io.BytesIO()
    with pa.ipc.new_stream(body, table.schema) as writer:
        writer.write_table(table)
    response = post(client, body.getvalue(), ARROW)
    assert response.json() == {"predictions": scores}
    for sent, kind in ((body.getvalue(), ARROW), (TEXT.encode(), "application/json")):
        response = post(client, sent, kind, Accept=ARROW)
        assert response.headers["content-type"] == ARROW
        answer = pa.ipc.open_stream(response.content).read_all()
        assert answer.schema == pa.schema({"score": pa.float32()})
        assert [float(str(score.as_py())) for score in answer["score"]] == pytest.approx(scores, abs=1e-7)
    wrong = post(client, json.dumps({"inputs": {"price": ["x"]}}), "application/json", Accept=ARROW)
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/json")
    assert wrong.json()["path"] == "$.inputs.price[0]"
