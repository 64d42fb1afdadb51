"""Advice for a user whose tables do not fit."""

from __future__ import annotations

import math

from dlrm_factory.config.declaration import DLRMDeclaration, Table, TableDtype
from dlrm_factory.config.sizes import format_bytes
from dlrm_factory.model.dtypes import row_bytes
from dlrm_factory.model.hardware import Hardware

__all__ = ["advice_when_nothing_fits"]

_SMALLER: tuple[TableDtype, ...] = ("fp16", "int8", "int4")
_SHOWN = 5


def advice_when_nothing_fits(declaration: DLRMDeclaration, hardware: Hardware, *, mode: str) -> str:
    """The largest tables, and which dtype, how many ranks or how much memory would make it fit."""
    sizes = {
        table.name: _table_bytes(table, table.dtype if mode == "quantized" else "fp32")
        for table in declaration.tables
    }
    total = sum(sizes.values())
    largest = sorted(declaration.tables, key=lambda table: -sizes[table.name])[:_SHOWN]
    lines = [
        f"the tables do not fit: they take {format_bytes(total)}, and {hardware.world_size} "
        f"{'rank has' if hardware.world_size == 1 else 'ranks have'} {format_bytes(hardware.memory)} each"
        f"{'' if _any_divisible(declaration) else ' (and no table may be split)'}. The largest:"
    ]
    lines += [
        f"  {table.name}: {format_bytes(sizes[table.name])} ({table.num_embeddings} x {table.embedding_dim} "
        f"{table.dtype if mode == 'quantized' else 'fp32'}, sharding {table.sharding})"
        for table in largest
    ]
    lines.append("What would make it fit:")
    lines += [f"  - {remedy}" for remedy in _remedies(declaration, hardware, sizes, mode=mode)]
    return "\n".join(lines)


def _table_bytes(table: Table, dtype: TableDtype) -> int:
    return table.num_embeddings * row_bytes(dtype, table.embedding_dim)


def _any_divisible(declaration: DLRMDeclaration) -> bool:
    return any(table.sharding in ("auto", "row_wise", "column_wise") for table in declaration.tables)


def _remedies(
    declaration: DLRMDeclaration, hardware: Hardware, sizes: dict[str, int], *, mode: str
) -> list[str]:
    total, budget = sum(sizes.values()), hardware.memory * hardware.world_size
    remedies = []
    for dtype in _SMALLER if mode == "quantized" else ():
        smaller = sum(min(sizes[table.name], _table_bytes(table, dtype)) for table in declaration.tables)
        if smaller <= budget and smaller < total:
            remedies.append(f"dtype {dtype} for the tables: {format_bytes(smaller)} in all")
            break
    unsplit = [table for table in declaration.tables if table.sharding in ("table_wise", "data_parallel")]
    for table in unsplit:
        if sizes[table.name] > hardware.memory and hardware.world_size > 1:
            remedies.append(f'sharding row_wise for table "{table.name}", which is larger than one rank')
    replicated = sum(sizes[table.name] for table in unsplit if table.sharding == "data_parallel")
    if hardware.memory > replicated:
        ranks = math.ceil((total - replicated) / (hardware.memory - replicated))
        if ranks > hardware.world_size:
            remedies.append(f"at least {ranks} ranks of {format_bytes(hardware.memory)}")
    needed = math.ceil(replicated + (total - replicated) / hardware.world_size)
    whole = max((sizes[table.name] for table in unsplit), default=0)
    remedies.append(f"about {format_bytes(max(needed, whole) * 1.05)} of memory a rank")
    return remedies
