"""Real rows and TorchServe's own example request, over HTTP, against the model called directly."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.batches import random_state, uncompiled, unsharded_logits
from support.server import ask, inference_client, serving

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration, criteo, dump_declaration
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.model.dtypes import encode_rows
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.weights.checkpoint import save_checkpoint
from dlrm_factory.weights.sealed import seal_folder
from dlrm_factory.weights.table_file import create_table_file

pytestmark = pytest.mark.integration

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
UPSTREAM_ID = 45_821_459  # above 2**24: as a float32 it would be 45821460

# Rows like the Criteo sample's, for machines without it: counts and hashed categories, both with gaps.
ROWS = [
    {"I1": "", "I2": "3", "I3": "260.0", "I5": "17668.0", "C1": "05db9164", "C2": "08d6d899", "C26": ""},
    {"I1": "0.0", "I2": "-1", "I3": "", "I5": "2013.0", "C1": "68fd1e64", "C2": "", "C26": "ded4aac9"},
]


def criteo_rows() -> list[dict[str, str]]:
    sample = DATA / "criteo_sample.csv"
    if not sample.is_file():
        return ROWS
    with sample.open(newline="") as file:
        return list(csv.DictReader(file))


def instance(row: dict[str, str]) -> dict[str, float | str | None]:
    """A CSV row as a client sends it: numbers and strings, null where the row has a gap."""
    values: dict[str, float | str | None] = {}
    for name, text in row.items():
        if name != "label":
            values[name] = None if text == "" else float(text) if name.startswith("I") else text
    return values


def upstream_request() -> dict[str, list]:
    file = DATA / "upstream_request.json"
    if file.is_file():
        return json.loads(file.read_text())
    ids = [UPSTREAM_ID, *range(2, 7), *[1] * 20]
    return {
        "float_features": [0.1 * i - 0.6 for i in range(13)],
        "id_list_features.lengths": [1] * 26,
        "id_list_features.values": [
            min(i, t.num_embeddings - 1) for i, t in zip(ids, criteo().tables, strict=True)
        ],
    }


class FullCriteo:
    """All 178 million rows, in a table file that is sparse on disk: only rows near asked ids hold values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.declaration = uncompiled(criteo())
        self.small = criteo(cap=3)  # row 0: below the asked id, row 1: the asked id, row 2: above it
        self.state = random_state(self.small)
        self.ids = upstream_request()["id_list_features.values"]
        folder.mkdir()
        (folder / "declaration.yaml").write_text(dump_declaration(self.declaration))
        dense = {key: t for key, t in self.state.items() if ".embedding_bags." not in key}
        save_file(dense, folder / "dense.safetensors")
        stored = create_table_file(folder / "tables.bin", self.declaration.tables)
        with (folder / "tables.bin").open("r+b") as file:
            for table, asked in zip(self.declaration.tables, self.ids, strict=True):
                rows = encode_rows(self.state[table_weight_key(table.name)], table.dtype).numpy()
                for offset, row in zip((-1, 0, 1), rows, strict=True):
                    if 0 <= asked + offset < table.num_embeddings:
                        place = stored[table.name]
                        file.seek(place.offset + (asked + offset) * place.row_bytes)
                        file.write(row.tobytes())
        seal_folder(folder)

    def expected(self, *, first_row: int) -> float:
        """The probability when table t_C1 gives row ``first_row`` of its three, the others their middle."""
        request = upstream_request()
        batch = FeatureBatch(
            dense=np.array([request["float_features"]], dtype=np.float32),
            lengths=np.ones((26, 1), dtype=np.int32),
            values=np.array([first_row] + [1] * 25, dtype=np.int64),
        )
        logits = unsharded_logits(self.small, self.state, batch, quantized=True)
        return float(torch.sigmoid(torch.from_numpy(logits))[0])


def raw_criteo() -> DLRMDeclaration:
    return uncompiled(criteo(cap=1000, raw=True))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> FullCriteo:
    return FullCriteo(tmp_path_factory.mktemp("criteo") / "sealed")


@pytest.fixture(scope="module")
def client(full, tmp_path_factory) -> Iterator[httpx.Client]:
    """One TorchServe with two models: `raw` takes the sample's rows, `full` has the full row counts."""
    folder = tmp_path_factory.mktemp("serving")
    archive_model(full.folder, folder / "store" / "full", model_name="full", archive_format="directory")
    save_checkpoint(folder / "raw.safetensors", raw_criteo(), random_state(raw_criteo()))
    archive_model(folder / "raw.safetensors", folder / "store" / "raw.mar", model_name="raw")
    with (
        serving(folder / "store", "full=full", "raw=raw.mar", run_dir=folder / "run") as server,
        inference_client(server) as client,
    ):
        yield client


def test_real_rows_score_as_the_model_called_directly(client):
    declaration = raw_criteo()
    instances = [instance(row) for row in criteo_rows()]
    answer = ask(client, "raw", {"instances": instances, "output": "logit"})

    columns = {
        name: [row.get(name) for row in instances]
        for name in (*declaration.dense_names, *declaration.sparse_names)
    }
    batch = FeatureEncoder(declaration).encode(columns, len(instances))
    expected = unsharded_logits(declaration, random_state(declaration), batch, quantized=True)
    assert np.abs(np.array(answer["predictions"]) - expected).max() < 1e-4
    assert np.std(expected) > 0.1  # the rows do differ
    # Gaps really are empty bags: 26 features, fewer ids.
    assert 0 < batch.values.size < 26 * len(instances)

    alone = [
        ask(client, "raw", {"instances": [row], "output": "logit"})["predictions"][0] for row in instances[:5]
    ]
    assert alone == pytest.approx(answer["predictions"][:5], abs=1e-4)


def test_upstream_request_reaches_its_row_among_178_million(client, full):
    request = upstream_request()
    assert request["id_list_features.values"][0] == UPSTREAM_ID
    assert ask(client, "full", request)["score"] == pytest.approx(full.expected(first_row=1), abs=1e-5)


def test_the_neighbouring_ids_have_other_rows(client, full):
    scores = []
    for row, offset in ((0, -1), (1, 0), (2, 1)):
        request = upstream_request()
        request["id_list_features.values"][0] += offset
        scores.append(ask(client, "full", request)["score"])
        assert scores[-1] == pytest.approx(full.expected(first_row=row), abs=1e-5)
    assert len({round(score, 6) for score in scores}) == 3


def test_the_full_tables_take_no_room_on_disk(full):
    table_file = full.folder / "tables.bin"
    assert table_file.stat().st_size > 12_000_000_000
    assert table_file.stat().st_blocks * 512 < 10_000_000
