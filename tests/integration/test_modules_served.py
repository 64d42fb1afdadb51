"""Dense nets of the user's own behind TorchServe: what HTTP answers is what NumPy finds by hand."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from support.depth import DEPTH
from support.nets import outputs_by_hand, trusted
from support.server import ask, inference_client, serving, uncompiled

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

pytestmark = pytest.mark.integration

# A worker each.
NETS = ["din", "two_towers"] if DEPTH != "deep" else ["din", "two_towers", "mmoe", "dcn_v2", "deepfm"]


@pytest.fixture(scope="module")
def weights() -> dict[str, RandomWeights]:
    return {name: RandomWeights(uncompiled(trusted(name))) for name in NETS}


@pytest.fixture(scope="module")
def client(
    weights: dict[str, RandomWeights], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "store").mkdir()
    for name, each in weights.items():
        seal_weights(each, folder / name)
        archive_model(folder / name, folder / "store" / f"{name}.mar", model_name=name)
    models = [f"{name}={name}.mar" for name in NETS]
    with (
        serving(folder / "store", *models, run_dir=folder / "run") as running,
        inference_client(running) as made,
    ):
        yield made


def rows_of(declaration: DLRMDeclaration, count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(8)
    rows = []
    for _ in range(count):
        row: dict[str, object] = {name: round(float(random.normal()), 3) for name in declaration.dense_names}
        for feature in declaration.sparse_features:
            size = int(random.integers(0, min(feature.max_length, 40) + 1))
            most = declaration.table(feature.table).num_embeddings
            row[feature.name] = random.integers(0, most, size).tolist()
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", NETS)
def test_answers_are_those_by_hand_alone_and_together(
    name: str, client: httpx.Client, weights: dict[str, RandomWeights]
) -> None:
    declaration = weights[name].declaration
    rows = rows_of(declaration, 5)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    batch = FeatureEncoder(declaration, None).encode(columns, len(rows))
    expected = outputs_by_hand(name, declaration, weights[name], batch)
    names = [output.name for output in declaration.all_outputs]
    asked = {"outputs": names} if declaration.outputs else {}
    together = ask(client, name, {"instances": rows, **asked})["predictions"]
    alone = [ask(client, name, {"instances": [row], **asked})["predictions"][0] for row in rows]
    for found in (together, alone):
        for i, prediction in enumerate(found):
            values = prediction if isinstance(prediction, dict) else {names[0]: prediction}
            for output in declaration.all_outputs:
                by_hand = expected[i, declaration.columns_of(output.name)]
                if output.kind == "probability":
                    by_hand = 1 / (1 + np.exp(-by_hand))
                assert np.abs(np.reshape(values[output.name], -1) - by_hand).max() < 1e-5
