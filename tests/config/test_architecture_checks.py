"""Rules on modules, outputs and sequences, each broken once."""

from __future__ import annotations

import msgspec
import pytest

from dlrm_factory.config import DLRMDeclaration, ModuleArchitecture, Output, tiny
from dlrm_factory.config.checks import problems_of

GOOD = msgspec.structs.replace(
    tiny(),
    architecture=ModuleArchitecture(module="net.py:Net", files=["layers.py"]),
    dense_arch_layer_sizes=None,
    over_arch_layer_sizes=None,
    dense_features=[],
    outputs=[
        Output(name="click", label="clicked"),
        Output(name="buy", label="bought", where="click"),
        Output(name="user", kind="vector", size=8),
    ],
)


def with_outputs(*outputs: Output) -> DLRMDeclaration:
    return msgspec.structs.replace(GOOD, outputs=list(outputs))


def of_module(**changes: object) -> DLRMDeclaration:
    assert GOOD.module is not None
    return msgspec.structs.replace(GOOD, architecture=msgspec.structs.replace(GOOD.module, **changes))


def with_tables(**changes: object) -> DLRMDeclaration:
    first, *others = GOOD.tables
    return msgspec.structs.replace(GOOD, tables=[msgspec.structs.replace(first, **changes), *others])


def test_a_good_one_has_no_problem() -> None:
    assert problems_of(GOOD) == []
    assert problems_of(with_tables(embedding_dim=12)) == []
    assert problems_of(with_tables(pooling="none", embedding_dim=12)) == []


CLICK = Output(name="click", label="clicked")


@pytest.mark.parametrize(
    ("declaration", "problem"),
    [
        (of_module(module="net"), '$.architecture.module: "net" is not FILE.py:CLASS'),
        (of_module(module="a/net.py:Net"), '$.architecture.module: "a/net.py" is not the plain name'),
        (of_module(files=["../x.py"]), '$.architecture.files[0]: "../x.py" is not the plain name'),
        (of_module(files=["class.py"]), '$.architecture.files[0]: "class.py" is not the plain name'),
        (of_module(files=["net.py"]), '$.architecture.files[0]: "net.py" is named twice'),
        (
            msgspec.structs.replace(GOOD, over_arch_layer_sizes=[4, 1]),
            "$.over_arch_layer_sizes: belongs to architecture dlrm",
        ),
        (with_outputs(), "$.outputs: is empty"),
        (with_outputs(CLICK, CLICK), '$.outputs[1].name: duplicate output "click"'),
        (with_outputs(Output(name="a b")), '$.outputs[0].name: "a b" is not a name'),
        (with_outputs(CLICK, Output(name="buy")), "$.outputs[1].label: is missing"),
        (
            with_outputs(Output(name="click", label="item_id")),
            '$.outputs[0].label: "item_id" is also a feature',
        ),
        (with_outputs(Output(name="click", size=2)), "$.outputs[0].size: belongs to outputs of kind vector"),
        (with_outputs(Output(name="v", kind="vector")), "$.outputs[0].size: is missing"),
        (with_outputs(Output(name="v", kind="vector", size=5000)), "$.outputs[0].size: 5000 is outside"),
        (with_outputs(Output(name="v", kind="vector", size=2, label="x")), "$.outputs[0].label: belongs to"),
        (
            with_outputs(CLICK, Output(name="buy", label="b", where="clic")),
            '$.outputs[1].where: there is no output "clic" before this one; did you mean "click"?',
        ),
        (
            with_outputs(Output(name="v", kind="vector", size=2), Output(name="buy", label="b", where="v")),
            '$.outputs[1].where: output "v" is a vector',
        ),
        (
            with_outputs(Output(name="click", loss_weight=0.0)),
            "$.outputs[0].loss_weight: 0.0 is not a positive",
        ),
        (
            msgspec.structs.replace(GOOD, serving=msgspec.structs.replace(GOOD.serving, outputs=["byu"])),
            '$.serving.outputs[0]: there is no output "byu"; did you mean "buy"?',
        ),
        (
            msgspec.structs.replace(tiny(), outputs=[CLICK, Output(name="buy", label="b")]),
            "$.outputs: architecture dlrm gives one probability",
        ),
        (
            msgspec.structs.replace(
                tiny(), tables=[msgspec.structs.replace(tiny().tables[0], pooling="none"), *tiny().tables[1:]]
            ),
            "$.tables[0].pooling: none gives a vector an id",
        ),
        (
            msgspec.structs.replace(
                GOOD,
                tables=[
                    msgspec.structs.replace(table, pooling="none", embedding_dim=dim)
                    for table, dim in zip(GOOD.tables, (4, 8, 8), strict=True)
                ],
            ),
            "$.tables[1].embedding_dim: 8 differs from 4; TorchRec's EmbeddingCollection needs one",
        ),
        (
            msgspec.structs.replace(
                with_tables(pooling="none"),
                sparse_features=[
                    msgspec.structs.replace(GOOD.sparse_features[0], weighted=True),
                    *GOOD.sparse_features[1:],
                ],
            ),
            "$.sparse_features[0].weighted: table",
        ),
        (
            msgspec.structs.replace(tiny(), architecture="dlrm_transformer", nhead=3, ntransformer_layers=1),
            "$.nhead: 3 does not divide embedding_dim 8",
        ),
        (msgspec.structs.replace(tiny(), architecture="deepfm"), "$.hidden_layer_size: is missing"),
    ],
)
def test_each_rule_is_told(declaration: DLRMDeclaration, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems_of(declaration)), problems_of(declaration)
