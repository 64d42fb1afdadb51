"""A module's own shared part is computed once for each ranking, and for each sample of all else."""

from __future__ import annotations

import textwrap
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch
from support.nets import trusted

from dlrm_factory.batch import FeatureBatch, SharedContext, concatenate, join_contexts, tile_context, to_dense
from dlrm_factory.compiled.build import _example
from dlrm_factory.compiled.dense_net import AnyNet
from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, tiny
from dlrm_factory.config.trust import trust_code
from dlrm_factory.errors import ModuleError
from dlrm_factory.model.model import make_model
from dlrm_factory.model.net import Net
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.weights.sealed import seal_weights

TOLERANCE = 1e-5
USER, ITEM, HISTORY, TAGS = range(4)


def only(batch: FeatureBatch, features: list[int]) -> FeatureBatch:
    lengths = batch.lengths.copy()
    is_kept = np.isin(np.arange(len(lengths)), features)
    lengths[~is_kept] = 0
    return FeatureBatch(
        dense=batch.dense,
        lengths=lengths,
        values=batch.values[np.repeat(is_kept, batch.lengths.sum(axis=1))],
    )


def ranking(
    declaration: DLRMDeclaration, size: int, *, seed: int, context: list[int], age: bool = True
) -> tuple[FeatureBatch, FeatureBatch]:
    """Candidates and their context; with ``age`` they share that dense feature, and never the price."""
    one = only(random_batch(declaration, 1, seed=seed), context)
    own = [f for f in range(4) if f not in context]
    samples = only(random_batch(declaration, size, seed=seed + 50), own)
    if age:
        samples.dense[:, 0] = one.dense[0, 0]
    return samples, one


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    seal_weights(RandomWeights(trusted("shared_towers")), tmp_path)
    return Scorer.load(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each call of the shared part."""
    found: list[int] = []
    whole = Net.shared_part

    def counted(self: Net, dense: torch.Tensor, *rest: object) -> tuple[torch.Tensor, ...]:
        found.append(dense.shape[0])
        return whole(self, dense, *rest)

    monkeypatch.setattr(Net, "shared_part", counted)
    return found


def test_once_a_ranking_and_for_each_other_sample(scorer: Scorer, calls: list[int]) -> None:
    declaration = scorer.declaration
    user = [USER, HISTORY, TAGS]
    parts = [
        (random_batch(declaration, 2, seed=9), None),
        ranking(declaration, 9, seed=1, context=user),
        ranking(declaration, 4, seed=2, context=[USER, TAGS]),  # each candidate has a history of its own
        ranking(declaration, 3, seed=3, context=user, age=False),
        ranking(declaration, 5, seed=4, context=[*user, ITEM]),
    ]
    batches, contexts = zip(*parts, strict=True)
    shared = join_contexts(batches, contexts)
    assert shared is not None
    batch = concatenate(batches)
    found = scorer.outputs(batch, shared)
    assert calls == [2 + 1 + 4 + 3 + 1]
    expected = scorer.reference_outputs(tile_context(batch, shared))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(found[2:11, 0]) > 1e-3
    np.testing.assert_allclose(scorer.joint_outputs(batch, shared), expected, rtol=0, atol=TOLERANCE)
    start = 0
    for samples, context in parts:
        own = None if context is None else SharedContext(bags=context, spans=[(0, len(samples))])
        stop = start + len(samples)
        np.testing.assert_allclose(scorer.outputs(samples, own), found[start:stop], rtol=0, atol=TOLERANCE)
        start = stop


def test_the_shared_part_is_an_input_of_what_is_compiled(scorer: Scorer) -> None:
    declaration = scorer.declaration
    net = make_model(declaration).net.eval()
    net.load_state_dict(scorer.built.model.module.net.state_dict())
    whole = AnyNet(net, "fp32")
    example, shapes = _example(declaration, torch.float32, net)
    exported = torch.export.export(whole, example, dynamic_shapes=shapes).module()
    samples, one = ranking(declaration, 9, seed=1, context=[USER, HISTORY, TAGS])
    shared = SharedContext(bags=one, spans=[(0, 9)])
    tiled = tile_context(samples, shared)
    found = scorer.look_up(tiled)
    with torch.no_grad():
        parts = net.shared_part(
            *(each[:1] for each in (to_dense(tiled), found.pooled)),
            *(tuple(each[:1] for each in kind) for kind in (found.sequences, found.lengths)),
        )
        repeated = tuple(part.index_select(0, torch.zeros(9, dtype=torch.int64)) for part in parts)
        outputs = exported(
            to_dense(tiled), found.pooled, tuple(found.sequences), tuple(found.lengths), repeated
        )
    np.testing.assert_allclose(outputs.numpy(), scorer.outputs(samples, shared), rtol=0, atol=TOLERANCE)


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    shared_features = ["price", "user_id"]

    def shared(self, dense, pooled):
        return torch.cat((dense, pooled.flatten(1)), dim=1)

    def forward(self, dense, shared):
        return dense[:, 0] + shared.sum(dim=1)
"""


def declared(code: str) -> DLRMDeclaration:
    architecture = ModuleArchitecture(module="net.py:Net", sources={"net.py": textwrap.dedent(code)})
    found = msgspec.structs.replace(
        tiny(), architecture=architecture, dense_arch_layer_sizes=None, over_arch_layer_sizes=None
    )
    trust_code(found)
    return found


def test_the_shared_part_gets_its_own_features_alone() -> None:
    net = make_model(declared(CODE)).net
    dense = torch.tensor([[1.0, 100], [2, 200]])
    pooled = torch.zeros(2, 24)
    pooled[:, 0], pooled[:, 8:] = 0.5, 1000  # the last two features' vectors
    (found,) = net.shared_part(dense, pooled)
    assert found.tolist() == [[1, 0.5, *[0] * 7], [2, 0.5, *[0] * 7]]
    assert net(dense, pooled).tolist() == [[2.5], [4.5]]
    assert net(dense, pooled, (), (), [found * 0]).tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "def shared(",
            "def other(",
            r"net\.py:11: forward of Net takes shared, but Net has no method shared",
        ),
        ("shared_features =", "features =", r"net\.py:11: .*shared_features is missing; give the list"),
        ('["price", "user_id"]', '"price"', r"net\.py:11: .*shared_features is 'price'; give the list"),
        ('"price"', '"prise"', r'net\.py:11: .*"prise", which is not a feature; did you mean "price"\?'),
        ("dense, pooled)", "dense, rows)", r'net\.py:8: shared of Net takes "rows", which is no input'),
        (
            '["price", "user_id"]',
            '["price"]',
            r"net\.py:8: shared of Net takes pooled, but none of its features",
        ),
    ],
)
def test_a_shared_part_that_does_not_fit_is_told_by_file_and_line(old: str, new: str, message: str) -> None:
    assert old in CODE
    with pytest.raises(ModuleError, match=message):
        make_model(declared(CODE.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("1.0", r"shared of Net returns float for B = 3 samples; return a tensor"),
        ("dense.sum()", r"returns \(\) for B = 3"),
        ("{}", r"returns dict for B = 3"),
        ("{'a': dense[:1]}", r"returns \(1, 1\) for B = 3"),
        ("dense @ dense", r"Net cannot score: net\.py:9 \(shared\): RuntimeError"),
    ],
)
def test_what_a_shared_part_must_return(returned: str, message: str) -> None:
    code = CODE.replace("torch.cat((dense, pooled.flatten(1)), dim=1)", returned)
    net = make_model(declared(code)).net
    with pytest.raises(ModuleError, match=message):
        net(torch.ones(3, 2), torch.ones(3, 24))


def test_a_layer_that_is_called_shared_is_no_shared_part() -> None:
    code = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(2, 1)

        def forward(self, dense):
            return self.shared(dense)
    """
    net = make_model(declared(code)).net
    assert not net.shares
    assert net.shared_part(torch.ones(3, 2), torch.ones(3, 24)) == ()


def test_shapes_that_follow_a_sequence_cannot_be_compiled() -> None:
    declaration = trusted("shared_towers")
    module = declaration.module
    assert module is not None
    text = module.sources["shared_towers.py"].replace(
        '"length": user', '"steps": sequences["history"], "length": user'
    )
    other = msgspec.structs.replace(module, sources={"shared_towers.py": text})
    declaration = msgspec.structs.replace(declaration, architecture=other)
    trust_code(declaration)
    with pytest.raises(ModuleError, match="another shape for longer sequences"):
        _example(declaration, torch.float32, make_model(declaration).net)
