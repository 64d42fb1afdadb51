"""The tables of names, in both directions, and the order of interactions."""

from __future__ import annotations

import pytest
import torch
from support.sharding import ARCHITECTURES, declared

from dlrm_factory.config import tiny
from dlrm_factory.model.model import make_model
from dlrm_factory.tools.importing.dlrm_s_pytorch import interaction_columns, source_columns
from dlrm_factory.tools.importing.matching import names_of, naming_of, strip_prefixes

BAGS = "sparse_arch.embedding_bag_collection.embedding_bags"


def ours(declaration):
    return list(make_model(declaration, dense_device="meta").state_dict())


@pytest.mark.parametrize("naming", ["torchrec", "dlrm_s_pytorch", "snapshot"])
def test_names_go_there_and_back(naming):
    names = ours(tiny())
    there = names_of(naming, tiny(), names)
    assert list(there) == names
    back = {theirs: mine for mine, theirs in there.items()}
    assert len(back) == len(names)  # no two weights have one name
    assert [back[there[name]] for name in names] == names
    assert naming_of(back) == naming


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("naming", ["torchrec", "snapshot"])
def test_every_architecture_has_names(naming, architecture):
    declaration = declared("auto", "sum", ("fp32",) * 3, architecture)
    there = names_of(naming, declaration, ours(declaration))
    assert len(set(there.values())) == len(ours(declaration))


def test_the_names_of_dlrm_s_pytorch():
    assert names_of("dlrm_s_pytorch", tiny(), ours(tiny())) == {
        f"{BAGS}.t_user_id.weight": "emb_l.0.weight",
        f"{BAGS}.t_item_id.weight": "emb_l.1.weight",
        f"{BAGS}.t_item_tags.weight": "emb_l.2.weight",
        "dense_arch.model._mlp.0._linear.weight": "bot_l.0.weight",
        "dense_arch.model._mlp.0._linear.bias": "bot_l.0.bias",
        "dense_arch.model._mlp.1._linear.weight": "bot_l.2.weight",
        "dense_arch.model._mlp.1._linear.bias": "bot_l.2.bias",
        "over_arch.model.0._mlp.0._linear.weight": "top_l.0.weight",
        "over_arch.model.0._mlp.0._linear.bias": "top_l.0.bias",
        "over_arch.model.1.weight": "top_l.2.weight",
        "over_arch.model.1.bias": "top_l.2.bias",
    }


def test_the_names_of_snapshots():
    names = names_of("snapshot", tiny(), ours(tiny()))
    assert names[f"{BAGS}.t_item_id.weight"] == "tables/t_item_id/weight"
    assert names["over_arch.model.1.bias"] == "dense/over_arch.model.1.bias"


def test_interactions_by_hand():
    # TorchRec: x x (0,1) (0,2) (1,2); dlrm_s_pytorch: x x (1,0) (2,0) (2,1). With a third table they part ways.
    assert interaction_columns(2, 2) == [0, 1, 2, 3, 4]
    # (0,1) (0,2) (0,3) (1,2) (1,3) (2,3) out of (1,0) (2,0) (2,1) (3,0) (3,1) (3,2)
    assert interaction_columns(3, 1) == [0, 1, 2, 4, 3, 5, 6]
    assert source_columns(3, 1) == [0, 1, 2, 4, 3, 5, 6]


@pytest.mark.parametrize(("tables", "size"), [(1, 4), (3, 8), (7, 16), (26, 16)])
def test_columns_go_there_and_back(tables, size):
    weight = torch.randn(5, size + tables * (tables + 1) // 2)
    there = weight[:, interaction_columns(tables, size)]
    assert torch.equal(there[:, source_columns(tables, size)], weight)
    assert tables < 3 or not torch.equal(there, weight)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "module.",
        "model.module.",
        "module.model.",
        "_dmp_wrapped_module.module.",
        "state_dict.model.",
    ],
)
def test_prefixes_come_off(prefix):
    names = ours(tiny())
    found = strip_prefixes([prefix + name for name in names])
    assert found.names == {name: prefix + name for name in names}
    assert found.ignored == found.doubles == []


def test_what_is_no_weight_of_the_model():
    names = [
        "model.over_arch.model.1.bias",
        "optim.state.over_arch.model.1.bias.step",
        "epoch",
        "model.stranger",
    ]
    found = strip_prefixes(names)
    assert found.names == {"over_arch.model.1.bias": names[0], "stranger": "model.stranger"}
    assert found.ignored == [names[1], "epoch"]


def test_a_weight_that_is_there_twice():
    found = strip_prefixes(["model.bot_l.0.bias", "module.bot_l.0.bias"])
    assert found.doubles == [("model.bot_l.0.bias", "module.bot_l.0.bias")]
