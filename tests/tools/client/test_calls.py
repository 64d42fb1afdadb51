"""Requests that are sent, and results of their answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dlrm_factory.client import (
    ClientError,
    DLRMClient,
    Explanation,
    InvalidRequest,
    ModelDescription,
    RankedCandidate,
    Retry,
    ServerFault,
)

ROWS = [{"price": 9.5, "user_id": "u17"}, {"item_tags": [3, 9]}]


def test_rows_are_scored(ask, server):
    server.answers({"predictions": [0.25, 0.5]})
    scores = ask("score", instances=ROWS)
    assert scores.dtype == np.float64
    assert scores.tolist() == [0.25, 0.5]
    assert server.body == {"instances": ROWS, "output": "probability"}
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", "http://infer:8000/predictions/dlrm")
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers


def test_columns_are_scored_as_logits_by_a_version_of_a_model(ask, server):
    server.answers({"predictions": [-1.5]})
    scores = ask(
        "score", {"model": "a b", "version": "2.0"}, inputs={"price": np.array([1.5])}, output="logit"
    )
    assert scores.tolist() == [-1.5]
    assert server.body == {"inputs": {"price": [1.5]}, "output": "logit"}
    assert server.requests[0].url.raw_path == b"/predictions/a%20b/2.0"


def test_no_samples_have_no_scores(ask, server):
    server.answers({"predictions": []})
    assert ask("score", instances=[]).shape == (0,)


def test_candidates_are_ranked(ask, server):
    server.answers({"ranking": [{"id": "b", "index": 1, "score": 0.5}, {"index": 0, "score": 0.25}]})
    candidates = [{"id": "a", "item_id": 1}, {"id": "b", "item_id": 2}]
    assert ask("rank", context={"user_id": 7}, candidates=candidates, top_k=2) == (
        RankedCandidate(id="b", index=1, score=0.5),
        RankedCandidate(id=None, index=0, score=0.25),
    )
    assert server.body == {
        "context": {"user_id": 7},
        "candidates": candidates,
        "top_k": 2,
        "output": "probability",
    }
    ask("rank", context={}, candidates={"id": np.array(["a"]), "item_id": np.array([1])})
    assert server.body == {
        "context": {},
        "candidates": {"id": ["a"], "item_id": [1]},
        "output": "probability",
    }


def test_outputs_are_chosen(ask, server):
    server.answers({"predictions": [0.25, 0.5]})
    assert ask("score", instances=ROWS, outputs="purchase").tolist() == [0.25, 0.5]
    assert server.body["outputs"] == ["purchase"]
    assert {
        name: each.tolist() for name, each in ask("score", instances=ROWS, outputs=["click"]).items()
    } == {"click": [0.25, 0.5]}
    server.answers({"predictions": [[1, 2, 3], [4, 5, 6]]})
    assert ask("score", instances=ROWS, outputs="tower").shape == (2, 3)
    server.answers({"predictions": [{"click": 0.25, "tower": [1, 2]}, {"click": 0.5, "tower": [3, 4]}]})
    found = ask("score", instances=ROWS, outputs=("tower", "click"))
    assert server.body["outputs"] == ["tower", "click"]
    assert (list(found), found["click"].tolist()) == (["tower", "click"], [0.25, 0.5])
    assert found["tower"].tolist() == [[1, 2], [3, 4]]
    assert found["tower"].dtype == np.float64


def test_several_outputs_want_a_name(ask, server):
    server.answers({"predictions": [{"click": 0.25, "purchase": 0.5}]})
    with pytest.raises(InvalidRequest, match=r'several outputs, click, purchase; .* outputs="click"'):
        ask("score", instances=ROWS[:1])
    server.answers(
        {"explanations": [{"score": {"click": 0.5}, "contributions": {"price": {"click": 0.25}}}]},
    )
    with pytest.raises(InvalidRequest, match="several outputs, click; name the one"):
        ask("explain", instances=ROWS[:1])


def test_an_answer_without_an_output_is_the_servers_fault(ask, server):
    server.answers({"predictions": [{"click": 0.25}]})
    with pytest.raises(ServerFault):
        ask("score", instances=ROWS[:1], outputs=["click", "purchase"])


def test_candidates_are_ranked_by_an_expression(ask, server):
    entry = {"id": "b", "index": 1, "score": 2.5, "outputs": {"click": 0.25, "tower": [1, 2]}}
    server.answers({"ranking": [entry]})
    (found,) = ask(
        "rank", context={}, candidates=ROWS, outputs=["click", "tower"], rank_by="click * price", top_k=1
    )
    assert found == RankedCandidate(id="b", index=1, score=2.5, outputs={"click": 0.25, "tower": [1, 2]})
    assert (server.body["rank_by"], server.body["outputs"]) == ("click * price", ["click", "tower"])


def test_one_output_is_explained(ask, server):
    server.answers({"explanations": [{"score": 0.5, "contributions": {"price": 0.25}}]})
    assert ask("explain", instances=ROWS[:1], outputs="click")[0].score == 0.5
    assert server.body["outputs"] == ["click"]


def test_scores_are_explained(ask, server):
    server.answers({"explanations": [{"score": 0.5, "contributions": {"price": 0.25, "user_id": 0}}]})
    assert ask("explain", instances=ROWS[:1]) == (
        Explanation(score=0.5, contributions={"price": 0.25, "user_id": 0.0}),
    )
    assert server.requests[0].url.path == "/explanations/dlrm"


def test_a_model_is_described(ask, server):
    workers = [{"status": "READY"}, {"status": "UNLOADED"}]
    version = {"modelName": "dlrm", "modelVersion": "1.0", "workers": workers}
    server.answers([{**version, "customizedMetadata": {"features": []}}])
    assert ask("describe") == ModelDescription(
        name="dlrm", version="1.0", ready_workers=1, details={"features": []}
    )
    assert str(server.requests[0].url) == "http://manage:81/models/dlrm?customized=true"
    server.answers([version])
    assert ask("describe").details == {}


@pytest.mark.parametrize(
    "answer", [[], 7, {}, {"predictions": 3}, {"predictions": [[[0.5]]]}, {"predictions": ["x"]}]
)
def test_an_answer_of_something_else(ask, server, answer):
    server.answers(answer)
    with pytest.raises(ServerFault, match="not that of a DLRM model") as caught:
        ask("score", instances=ROWS)
    assert caught.value.status == 200


def test_either_rows_or_columns(ask, server):
    for arguments in ({}, {"instances": [], "inputs": {}}):
        with pytest.raises(InvalidRequest, match="either instances"):
            ask("score", **arguments)
    assert server.requests == []


def test_settings_are_checked(tmp_path):
    for settings, message in [
        ({"url": "127.0.0.1:8080"}, "^url: 127.0.0.1:8080 is not like http://"),
        ({"management_url": "ftp://x"}, "^management_url: "),
        ({"token": "t", "key_file": tmp_path}, "not both"),
    ]:
        with pytest.raises(ClientError, match=message):
            DLRMClient(**settings)
    with pytest.raises(ClientError, match="attempts is 0"):
        Retry(attempts=0)
    with pytest.raises(ClientError, match="first_delay"):
        Retry(first_delay=3, longest_delay=2)
    with DLRMClient() as client, pytest.raises(ClientError, match="give management_url"):
        client.describe()


def test_the_client_needs_no_torch():
    code = """
import sys, dlrm_factory.client
ours = {name for name in sys.modules if name.startswith(("dlrm_factory", "handler"))}
rest = {name for name in ours if not name.startswith(("dlrm_factory.client", "dlrm_factory.tools.client"))}
assert rest == {"dlrm_factory", "dlrm_factory._version", "dlrm_factory.errors", "dlrm_factory.tools"}, rest
assert not {"torch", "torchrec", "msgspec", "psutil"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_table_may_stand_for_rows_and_for_columns(ask, server):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"price": [1.5, None], "user_id": ["a", "b"]})
    server.answers({"predictions": [0.5, 0.25]})
    for name in ("instances", "inputs"):
        assert ask("score", **{name: table}).tolist() == [0.5, 0.25]
        assert server.body["inputs"] == {"price": [1.5, None], "user_id": ["a", "b"]}
        assert "instances" not in server.body
    server.answers({"ranking": []})
    ask("rank", context={"user_id": "a"}, candidates=table)
    assert server.body["candidates"] == {"price": [1.5, None], "user_id": ["a", "b"]}
