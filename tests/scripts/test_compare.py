"""References of the comparison, and its arithmetic."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from setuptools import find_packages

from compare.archives import make_store
from compare.command import available_rows, result
from compare.eager import EagerModel
from compare.fastapi_server import missing_packages, running_fastapi
from compare.handlers.stock_handler import StockHandler
from compare.in_process import in_process_sample_rate
from compare.machine import bf16_flags, cpu_model, describe_machine
from compare.measurements import FOLLOWING, HTTP, SCORER_BATCHES, targets_of
from compare.rows import ROWS, Row, choose_rows
from compare.runs import Comparison
from dlrm_factory.config import criteo, read_declaration
from dlrm_factory.errors import DataError, ServingError
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.bench.http.bodies import random_bodies

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(criteo(cap=200), tmp_path_factory.mktemp("compare"))


def test_every_archive_names_its_handler(store):
    handlers = {path.name: read_archive_listing(path).handler for path in store.folder.iterdir()}
    assert handlers == {
        "dlrm": "dlrm_handler.py",
        "dlrm_latency": "dlrm_handler.py",
        "echo": "echo_handler.py",
        "echo_latency": "echo_handler.py",
        "plain_echo": "plain_echo_handler.py",
        "plain_echo_latency": "plain_echo_handler.py",
        "stock": "stock_handler.py",
        "stock_default": "stock_handler.py",
    }
    batches = {
        name: read_declaration(store.folder / name / "declaration.yaml").serving.batch_requests
        for name in handlers
        if "stock" not in name
    }
    assert batches == {name: 1 if "latency" in name else 64 for name in batches}
    assert "batchSize: 64\nmaxBatchDelay: 2\n" in (store.folder / "stock" / "model-config.yaml").read_text()
    assert "batchSize" not in (store.folder / "stock_default" / "model-config.yaml").read_text()


def test_the_stock_handler_gives_the_models_scores(store):
    handler = StockHandler()
    handler.initialize(SimpleNamespace(system_properties={"model_dir": str(store.folder / "stock")}))
    bodies = random_bodies(criteo(cap=200), "1", body_format="torchserve")[:9]
    answers = handler.handle([{"body": json.loads(body.content)} for body in bodies], None)
    service = DLRMService(Scorer.load(store.sealed))
    expected = service.handle([Request(body=body.content) for body in bodies])
    scores = [json.loads(answer.body)["score"] for answer in expected]
    np.testing.assert_allclose([answer["score"] for answer in answers], scores, atol=1e-6)
    assert 0 < min(scores) < max(scores) < 1


@pytest.mark.slow
def test_one_process_is_timed(store, tmp_path: Path):
    bodies = random_bodies(criteo(cap=200), "8")[:3]
    assert in_process_sample_rate(store.sealed, bodies, 0.2, tmp_path) > 8


@pytest.mark.parametrize("app", ["thread_pool_app", "batcher_app"])
def test_fastapi_gives_the_models_scores(store, app):
    fastapi_app = pytest.importorskip("compare.fastapi_app", exc_type=ModuleNotFoundError)
    bodies = [*random_bodies(criteo(cap=200), "1")[:5], *random_bodies(criteo(cap=200), "7")[:3]]
    application = getattr(fastapi_app, app)(EagerModel(store.sealed))
    answers = asyncio.run(post_all(application, [body.content for body in bodies]))
    service = DLRMService(Scorer.load(store.sealed))
    expected = service.handle([Request(body=body.content) for body in bodies])
    assert [answer.status_code for answer in answers] == [200] * 8
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(
            answer.json()["predictions"], json.loads(wanted.body)["predictions"], atol=1e-6
        )


async def post_all(application, contents: list[bytes]) -> list[httpx.Response]:
    """All at the same time, without a socket."""
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://compare") as client:
        headers = {"Content-Type": "application/json"}
        calls = [client.post("/predictions/dlrm", content=each, headers=headers) for each in contents]
        return await asyncio.gather(*calls)


class CountingModel:
    """Scores a request with its own numbers; keeps the sizes of its batches."""

    def __init__(self):
        self.sizes = []

    def score_all(self, requests):
        self.sizes.append(len(requests))
        if any("broken" in columns for columns in requests):
            raise ValueError("broken")
        return [columns["I1"] for columns in requests]


def test_the_batcher_scores_what_waits_together():
    fastapi_app = pytest.importorskip("compare.fastapi_app", exc_type=ModuleNotFoundError)
    model = CountingModel()

    async def score() -> list[list[float]]:
        batcher = fastapi_app.Batcher(model)
        return await asyncio.gather(*(batcher.score({"I1": [float(i)]}) for i in range(100)))

    assert asyncio.run(score()) == [[float(i)] for i in range(100)]
    assert model.sizes == [64, 36]


def test_the_batcher_goes_on_after_an_error():
    fastapi_app = pytest.importorskip("compare.fastapi_app", exc_type=ModuleNotFoundError)

    async def score() -> list[float]:
        batcher = fastapi_app.Batcher(CountingModel())
        with pytest.raises(ValueError, match="broken"):
            await batcher.score({"broken": []})
        return await batcher.score({"I1": [3.0]})

    assert asyncio.run(score()) == [3.0]


def test_a_fastapi_server_answers_over_http(store, tmp_path: Path):
    if missing_packages():
        pytest.skip("the extra compare is not installed")
    body = random_bodies(criteo(cap=200), "3")[0]
    with running_fastapi("fastapi_batcher", store.sealed, tmp_path / "log") as url:
        answer = httpx.post(
            f"{url}/predictions/dlrm", content=body.content, headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, len(answer.json()["predictions"])) == (200, 3)


@pytest.mark.slow
def test_a_fastapi_server_that_does_not_start_says_why(tmp_path: Path):
    pytest.importorskip("compare.fastapi_app")
    with (
        pytest.raises(ServingError, match=r"did not start: .*no-weights"),
        running_fastapi("fastapi_threads", tmp_path / "no-weights", tmp_path / "log"),
    ):
        pass


def test_rows_of_missing_packages_are_left_out():
    rows, line = available_rows(["*-fastapi", "scorer-16"], ["uvloop"])
    assert [row.name for row in rows] == ["scorer-16"]
    assert line is not None
    assert "left out: 1-fastapi, lone-fastapi, 128-fastapi, 512-fastapi; not installed: uvloop." in line
    assert ".[compare]" in line
    assert available_rows([], []) == (list(ROWS), None)
    assert available_rows(["1-stock"], ["uvloop"])[1] is None


def test_an_unknown_row_is_refused():
    with pytest.raises(DataError, match='no row "lone"; the rows are scorer-1, '):
        choose_rows(["scorer-1", "lone"])


def test_only_what_the_rows_need_is_started():
    assert targets_of({"scorer 1", "eager scorer 1"}) == set()
    assert targets_of({"70 % p99"}) == {"dlrm"}
    assert targets_of({"lone", "fastapi lone"}) == {"dlrm", "fastapi_threads"}


def test_every_row_has_its_measurements():
    scored = {f"{kind}scorer {batch}" for kind in ("", "eager ") for batch in SCORER_BATCHES}
    measured = {each.key for each in HTTP} | set(FOLLOWING) | scored | {"in process"}
    assert {key for row in ROWS for key in (row.ours, row.theirs)} == measured
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_scorer_and_the_model_are_timed(store, tmp_path: Path, monkeypatch):
    compiled = []  # instead of compiling, which takes a minute
    monkeypatch.setattr(Scorer, "compile", lambda scorer, folder: compiled.append(folder))
    rows = choose_rows(["scorer-1", "scorer-16"])
    keys = {key for row in rows for key in (row.ours, row.theirs)}
    comparison = Comparison(
        declaration=criteo(cap=200), store=store, targets={}, keys=keys, seconds=0.05, scratch=tmp_path
    )
    comparison.run_round()
    assert compiled == [store.sealed]
    assert set(comparison.numbers) == keys
    found = result(rows, comparison.numbers, {"cpu": "c"})
    assert [row["ratio"] for row in found["rows"]] == [
        comparison.numbers[row.ours][0] / comparison.numbers[row.theirs][0] for row in rows
    ]


def test_the_machine_is_described():
    first = "model\t\t: 17\nmodel name\t: AMD EPYC\ncpu family\t: 25\nflags\t\t: fpu avx512_bf16 avx2\n"
    cpuinfo = f"{first}\nmodel name\t: B\n"
    assert cpu_model(cpuinfo) == "AMD EPYC (family 25, model 17)"
    assert bf16_flags(cpuinfo) == ["avx512_bf16"]
    assert bf16_flags("flags\t: avx2\n") == []
    described = describe_machine()
    assert described["versions"]["torchserve"] == "0.12.0"
    json.dumps(described)


def test_the_command_starts_from_any_folder(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "compare"), "--only", "nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith('compare: there is no row "nothing"; the rows are scorer-1')


def test_neither_wheel_nor_archives_hold_the_comparison(store):
    include = re.search(r"packages.find\]\ninclude = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    found = find_packages(str(ROOT), include=json.loads(include[1]))
    assert "dlrm_factory.tools.bench" in found
    assert not [name for name in found if "compare" in name]
    assert not [
        path for path in (store.folder / "dlrm").rglob("*") if path.stem in ("compare", "fastapi_app")
    ]


def test_a_ratio_is_the_median_of_the_rounds():
    row = Row(name="n", work="w", reference="r", ours="a", theirs="b", bound=2.0)
    numbers = {"a": [10.0, 30.0, 8.0], "b": [5.0, 10.0, 8.0]}
    assert row.ratio(numbers) == 2.0
    assert row.met(numbers)
    assert not Row(name="n", work="w", reference="r", ours="a", theirs="b", bound=1.9, at_most=True).met(
        numbers
    )
    assert Row(name="n", work="w", reference="r", ours="a", theirs="b").met(numbers) is None
    assert len({(row.work, row.reference) for row in ROWS}) == len(ROWS)
