"""The dense parts as they are compiled give what TorchRec's own give, before any compiler has seen them."""

from __future__ import annotations

import pytest
import torch
from torchrec.models.dlrm import InteractionArch

from dlrm_factory.compiled.dense_net import FlatInteraction, JointInteraction


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
