"""Settings that are searched for, of modules of the user's own and of architectures without a bottom MLP."""

from __future__ import annotations

import msgspec
from support.nets import trusted

from dlrm_factory.tools.tuning.space import Settings, Space


def test_a_module_keeps_its_tables():
    declaration = trusted("mmoe")
    space, declared = Space(declaration), Settings.of(declaration)
    assert (space.dims, declared.embedding_dim) == ([], None)
    changed = msgspec.structs.replace(declared, learning_rate=0.5).applied_to(declaration)
    assert changed.tables == declaration.tables
    assert changed.dense_arch_layer_sizes is None
    assert changed.training.learning_rate == 0.5
    assert Space.settings(Space.parameters(declared)) == declared


def test_deepfm_has_another_dimension_without_a_bottom_mlp():
    declaration = trusted("deepfm")
    declared = Settings.of(declaration)
    dim = declared.embedding_dim
    assert Space(declaration).dims == [dim // 2, dim, 2 * dim]
    changed = msgspec.structs.replace(declared, embedding_dim=2 * dim).applied_to(declaration)
    assert {table.embedding_dim for table in changed.tables} == {2 * dim}
    assert changed.dense_arch_layer_sizes is None
