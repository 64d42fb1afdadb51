"""Every sharding that a declaration can ask for, and what the built model must then compute."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch.distributed as dist

from dlrm_factory.config import DLRMDeclaration, tiny
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.shard import process_group
from dlrm_factory.scorer import Scorer
from support.batches import random_batch, random_state, unsharded_logits

SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel", "auto")
POOLINGS = ("sum", "mean")
DTYPES = (
    ("fp32", "fp32", "fp32"),
    ("fp16", "fp16", "fp16"),
    ("int8", "int8", "int8"),
    ("int4", "int4", "int4"),
    ("int8", "fp16", "fp32"),
    ("int4", "int8", "int4"),
)
ARCHITECTURES = {
    "dlrm": {},
    "dlrm_dcn": {"dcn_num_layers": 2, "dcn_low_rank_dim": 4},
    "dlrm_projection": {
        "interaction_branch1_layer_sizes": [16, 8],
        "interaction_branch2_layer_sizes": [16, 8],
    },
}
# Float sums in another order; a quantised shard holds just the values of the unsharded row.
TOLERANCE = 1e-5


def declared(
    sharding: str, pooling: str, dtypes: tuple[str, ...], architecture: str = "dlrm"
) -> DLRMDeclaration:
    base = tiny()
    tables = [
        msgspec.structs.replace(table, sharding=sharding, pooling=pooling, dtype=dtype)
        for table, dtype in zip(base.tables, dtypes, strict=True)
    ]
    return msgspec.structs.replace(
        base, tables=tables, architecture=architecture, **ARCHITECTURES[architecture]
    )


def cases() -> Iterator[tuple[str, DLRMDeclaration]]:
    """(mode, declaration) for every sharding, pooling, dtype and architecture."""
    for sharding, pooling in itertools.product(SHARDINGS, POOLINGS):
        yield "float", declared(sharding, pooling, DTYPES[0])
        for dtypes in DTYPES:
            yield "quantized", declared(sharding, pooling, dtypes)
    for architecture, mode in itertools.product(ARCHITECTURES, ("float", "quantized")):
        yield mode, declared("row_wise", "mean", DTYPES[4], architecture)
    yield "quantized", mixed_shardings()
    yield "float", mixed_shardings()
    yield "quantized", mixed_poolings()
    yield "float", mixed_poolings()
    for sharding, pooling in itertools.product(SHARDINGS, POOLINGS):
        yield "float", weighted(declared(sharding, pooling, DTYPES[0]))
        yield "quantized", weighted(declared(sharding, pooling, DTYPES[4]))
    for architecture in ARCHITECTURES:
        yield "quantized", weighted(declared("row_wise", "mean", DTYPES[5], architecture))
    yield "quantized", weighted(mixed_shardings())


def weighted(declaration: DLRMDeclaration) -> DLRMDeclaration:
    """The same with a weighted first feature, whose table is summed; the others keep their pooling."""
    feature = msgspec.structs.replace(declaration.sparse_features[0], weighted=True)
    table = msgspec.structs.replace(declaration.tables[0], pooling="sum")
    return msgspec.structs.replace(
        declaration,
        sparse_features=[feature, *declaration.sparse_features[1:]],
        tables=[table, *declaration.tables[1:]],
    )


def mixed_shardings() -> DLRMDeclaration:
    """One table of each kind in one model, and two features that share a table."""
    base = declared("auto", "sum", ("int8", "fp16", "int4"))
    shardings = ("row_wise", "column_wise", "data_parallel")
    tables = [
        msgspec.structs.replace(table, sharding=sharding)
        for table, sharding in zip(base.tables, shardings, strict=True)
    ]
    shared = msgspec.structs.replace(base.sparse_features[0], name="seller_id")
    return msgspec.structs.replace(base, tables=tables, sparse_features=[*base.sparse_features, shared])


def mixed_poolings() -> DLRMDeclaration:
    """A row_wise mean beside a table_wise sum and a column_wise mean."""
    base = mixed_shardings()
    kinds = (("row_wise", "mean"), ("table_wise", "sum"), ("column_wise", "mean"))
    tables = [
        msgspec.structs.replace(table, sharding=sharding, pooling=pooling)
        for table, (sharding, pooling) in zip(base.tables, kinds, strict=True)
    ]
    return msgspec.structs.replace(base, tables=tables)


def largest_difference(mode: str, declaration: DLRMDeclaration, *, rank: int = 0) -> float:
    """|sharded - unsharded| over a batch whose size differs by rank."""
    state = random_state(declaration)
    built = DLRMFactory(declaration).build(mode=mode, weights=state)
    batch = random_batch(declaration, 5 + rank, seed=rank)
    expected = unsharded_logits(declaration, state, batch, quantized=mode == "quantized")
    return float(np.abs(Scorer(built).logits(batch) - expected).max())


def check_all(folder: Path) -> None:
    """Write the differences that this rank finds to a file of its own in ``folder``."""
    rank = process_group("cpu").rank()
    found = [
        {
            "mode": mode,
            "architecture": declaration.architecture,
            "tables": [[table.sharding, table.pooling, table.dtype] for table in declaration.tables],
            "difference": largest_difference(mode, declaration, rank=rank),
        }
        for mode, declaration in cases()
    ]
    report = {"rank": rank, "world_size": dist.get_world_size(), "cases": found}
    (folder / f"{rank}.json").write_text(json.dumps(report))
