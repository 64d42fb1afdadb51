"""Models of facebookresearch/dlrm's dlrm_s_pytorch.py, whose formula is written here in plain torch."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from torch import nn

from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature, Table
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.importing import first_declaration, import_weights
from dlrm_factory.weights.checkpoint import open_checkpoint

ROWS, SIZE, DENSE = (40, 9, 25, 60, 5), 8, 4
BOTTOM, TOP = (16, SIZE), (24, 8, 1)
TOLERANCE = 1e-5


def mlp(sizes, *, sigmoid):
    layers = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid() if sigmoid else nn.ReLU())


class Source(nn.Module):
    """Bags summed, the lower triangle of dot products, ReLU at the bottom's end, sigmoid at the top's."""

    def __init__(self, *, itself=False, op="dot"):
        super().__init__()
        self.offset = 1 if itself else 0
        vectors = len(ROWS) + 1
        pairs = vectors * (vectors + 1) // 2 if itself else vectors * (vectors - 1) // 2
        inputs = SIZE + pairs if op == "dot" else SIZE * vectors
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(rows, SIZE, mode="sum") for rows in ROWS)
        self.bot_l = mlp((DENSE, *BOTTOM), sigmoid=False)
        self.top_l = mlp((inputs, *TOP), sigmoid=True)

    def forward(self, dense, bags):
        """bags: (values, offsets) by table → probabilities."""
        x = self.bot_l(dense)
        vectors = torch.stack([x, *(table(*bag) for table, bag in zip(self.emb_l, bags, strict=True))], dim=1)
        products = vectors @ vectors.transpose(1, 2)
        lower = [(i, j) for i in range(vectors.shape[1]) for j in range(i + self.offset)]
        flat = torch.stack([products[:, i, j] for i, j in lower], dim=1)
        return self.top_l(torch.cat([x, flat], dim=1)).reshape(-1)


def declared(**changes):
    declaration = DLRMDeclaration(
        dense_arch_layer_sizes=list(BOTTOM),
        over_arch_layer_sizes=list(TOP),
        dense_features=[DenseFeature(name=f"I{i}") for i in range(DENSE)],
        sparse_features=[SparseFeature(name=f"C{i}", table=f"t_C{i}") for i in range(len(ROWS))],
        tables=[Table(name=f"t_C{i}", num_embeddings=n, embedding_dim=SIZE) for i, n in enumerate(ROWS)],
    )
    return msgspec.structs.replace(declaration, **changes)


def saved(path, state, *, zipped=True):
    """File as --save-model saves it: NumPy's numbers beside the weights."""
    loss = np.float32(0.45)
    whole = {
        "nepochs": 1, "nbatches": 1024, "test_acc": 0.78, "state_dict": state, "epoch": 0, "iter": 1024,
        "train_loss": loss, "total_loss": np.float64(461.5),
        "opt_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def source():
    torch.manual_seed(7)
    model = Source()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
    return model


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_scores_are_the_source_s(source, zipped, tmp_path):
    path = saved(tmp_path / "model.pt", source.state_dict(), zipped=zipped)
    declaration = declared()
    report = import_weights([path], declaration, tmp_path / "c.safetensors", source_format="dlrm_s_pytorch")
    assert report.naming == "dlrm_s_pytorch"
    batch = random_batch(declaration, 64)
    bags, at = [], 0
    for lengths in batch.lengths:
        values = torch.from_numpy(batch.values[at : at + lengths.sum()])
        bags.append((values, torch.from_numpy(np.cumsum(lengths) - lengths)))
        at += lengths.sum()
    with torch.no_grad():
        expected = source(torch.from_numpy(batch.dense), bags).numpy()
    built = DLRMFactory(declaration).build(weights=open_checkpoint(tmp_path / "c.safetensors"))
    found = 1 / (1 + np.exp(-Scorer(built).logits(batch).astype(np.float64)))
    assert np.abs(found - expected).max() <= TOLERANCE
    assert np.ptp(expected) > 0.1


def test_a_first_declaration(source, tmp_path):
    path = saved(tmp_path / "model.pt", source.state_dict())
    found = first_declaration([path], tmp_path)
    assert [(t.name, t.num_embeddings) for t in found.tables] == [
        (f"t_cat_{i}", n) for i, n in enumerate(ROWS)
    ]
    assert (found.dense_arch_layer_sizes, found.over_arch_layer_sizes) == (list(BOTTOM), list(TOP))
    assert len(found.dense_features) == DENSE
    import_weights([path], found, tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"itself": True}, "--arch-interaction-itself"), ({"op": "cat"}, "--arch-interaction-op=cat")],
)
def test_other_interactions_are_refused(options, reason, tmp_path):
    path = saved(tmp_path / "model.pt", Source(**options).state_dict())
    with pytest.raises(WeightsError, match=reason):
        import_weights([path], declared(), tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match=reason):
        first_declaration([path], tmp_path)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("emb_l.3.weight_q", "quotient-remainder"),
        ("emb_l.3.embs.weight", "mixed-dimension"),
        ("v_W_l.0", r"emb_l.N.weight \* v_W_l.N\[:, None\]"),
        ("top_l.0._packed_params._packed_params", "quantised"),
    ],
)
def test_other_embeddings_are_refused(source, key, reason, tmp_path):
    path = saved(tmp_path / "model.pt", {**source.state_dict(), key: torch.zeros(4, 4)})
    with pytest.raises(WeightsError, match=reason):
        import_weights([path], declared(), tmp_path / "c.safetensors")


def test_a_declaration_that_cannot_be_its(source, tmp_path):
    path = saved(tmp_path / "model.pt", source.state_dict())
    mean = [msgspec.structs.replace(table, pooling="mean") for table in declared().tables]
    with pytest.raises(WeightsError, match="sums its bags; declare pooling: sum for t_C0, t_C1"):
        import_weights([path], declared(tables=mean), tmp_path / "c.safetensors")
    features = [*declared().sparse_features, SparseFeature(name="again", table="t_C0")]
    with pytest.raises(WeightsError, match="a table for each feature, but several features use t_C0"):
        import_weights([path], declared(sparse_features=features), tmp_path / "c.safetensors")
    dcn = declared(architecture="dlrm_dcn", dcn_num_layers=2, dcn_low_rank_dim=4)
    with pytest.raises(WeightsError, match="architecture dlrm alone"):
        import_weights([path], dcn, tmp_path / "c.safetensors")


def test_the_wrong_format(source, tmp_path):
    path = saved(tmp_path / "model.pt", source.state_dict())
    with pytest.raises(WeightsError, match="named as by dlrm_s_pytorch, not torchrec"):
        import_weights([path], declared(), tmp_path / "c.safetensors", source_format="torchrec")
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        import_weights([path], declared(), tmp_path / "c.safetensors", source_format="safetensors")


def test_names_are_the_source_s_in_messages(source, tmp_path):
    state = source.state_dict()
    del state["bot_l.2.bias"]
    state["emb_l.1.weight"] = torch.zeros(10, SIZE)
    state["emb_l.5.weight"] = torch.zeros(3, SIZE)
    with pytest.raises(WeightsError) as error:
        import_weights([saved(tmp_path / "model.pt", state)], declared(), tmp_path / "c.safetensors")
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  missing: bot_l.2.bias [8]",
        "  not of this model: emb_l.5.weight [3, 8]",
        "  emb_l.1.weight: is [10, 8], the declaration says [9, 8]",
    ]
