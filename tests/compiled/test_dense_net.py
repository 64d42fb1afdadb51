"""The dense parts as they are compiled give what TorchRec's own give, before any compiler has seen them."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.batches import random_state
from support.sharding import DTYPES, declared
from torchrec.models.dlrm import InteractionArch

from dlrm_factory.compiled.dense_net import (
    MAX_FLOAT_WEIGHTS,
    FlatInteraction,
    JointInteraction,
    make_dense_net,
)
from dlrm_factory.config import criteo
from dlrm_factory.model.model import load_dense, make_model


@pytest.mark.parametrize("kind", [FlatInteraction, JointInteraction])
@pytest.mark.parametrize("sparse_features", [1, 2, 5, 26])
def test_the_pairs_are_torchrecs_and_the_width_is_whole(kind, sparse_features):
    interaction, dim = kind(sparse_features), 12
    filling = interaction.filling(dim)
    embedded, pooled = torch.randn(3, dim), torch.randn(3, sparse_features, dim)
    found = interaction(embedded, pooled)
    expected = InteractionArch(num_sparse_features=sparse_features)(embedded, pooled)
    assert found.shape[1] == expected.shape[1] + filling
    assert found.shape[1] % 32 == 0
    assert torch.allclose(found[:, : expected.shape[1]], expected, atol=1e-5)
    assert torch.isfinite(found).all()


def net_of(declaration, precision, *, few_samples=False):
    model = make_model(declaration)
    load_dense(
        model, {key: value for key, value in random_state(declaration).items() if "embedding" not in key}
    )
    return make_dense_net(model, declaration, precision, few_samples=few_samples).eval()


@pytest.mark.parametrize("few_samples", [True, False])
@pytest.mark.parametrize("architecture", ["dlrm", "dlrm_dcn", "dlrm_projection"])
@torch.no_grad()
def test_bfloat16_scores_are_near_float32_ones_however_large_the_numbers(architecture, few_samples):
    declaration = declared("auto", "sum", DTYPES[2], architecture)
    exact = net_of(declaration, "fp32")
    narrow = net_of(declaration, "bf16", few_samples=few_samples)
    features, dim = len(declaration.sparse_features), declaration.embedding_dim
    torch.manual_seed(0)
    pooled = torch.randn(200, features * dim) * 0.1
    # The cross net multiplies what is rounded by itself, layer after layer.
    bound = 0.1 if architecture == "dlrm_dcn" else 0.02
    for size in (1, 100):
        dense = torch.randn(200, len(declaration.dense_features)) * size
        expected = exact(dense, pooled)
        found = narrow(dense, pooled.bfloat16())
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < bound * expected.abs().max()
        # bfloat16 logits would share a few values, and candidates their ranks.
        assert len(found.unique()) > 0.9 * len(expected.unique())


@pytest.mark.parametrize("few_samples", [True, False])
def test_only_small_layers_below_and_the_last_one_stay_float32(few_samples):
    declaration = criteo(cap=100)
    net = net_of(declaration, "bf16", few_samples=few_samples)

    def dtypes(part):
        return [each.weight.dtype for each in part.modules() if isinstance(each, torch.nn.Linear)]

    wide, narrow = torch.float32, torch.bfloat16
    sizes = [13, *declaration.dense_arch_layer_sizes]
    weights = [rows * columns for rows, columns in itertools.pairwise(sizes)]
    assert dtypes(net.dense_arch) == [wide if count <= MAX_FLOAT_WEIGHTS else narrow for count in weights]
    assert dtypes(net.dense_arch) == [wide, narrow, wide]
    assert dtypes(net.over_arch) == [narrow] * (len(declaration.over_arch_layer_sizes) - 1) + [wide]
