"""Small tables that ``sharding: auto`` replicates on every rank that serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.sizes import parse_bytes
from dlrm_factory.model.hardware import Hardware

__all__ = ["replica_sets"]


def replica_sets(
    declaration: DLRMDeclaration, hardware: Hardware, sizes: Mapping[str, int]
) -> Iterator[frozenset[str]]:
    """Sets of ``auto`` tables to replicate, to be tried in turn: all that the memory may hold, half as many, none.

    A table is replicated if it is smaller than ``sharding.replicate_below``, smallest first, as long as a rank has
    room for all replicas and for its even part of the rest. ``sizes``: bytes of each table.
    """
    small = _small_tables(declaration, hardware, sizes)
    for count in sorted({len(small), len(small) // 2, 0}, reverse=True):
        yield frozenset(small[:count])


def _small_tables(declaration: DLRMDeclaration, hardware: Hardware, sizes: Mapping[str, int]) -> list[str]:
    """Smallest first."""
    ranks, below = hardware.world_size, parse_bytes(declaration.sharding.replicate_below, least=0)
    if ranks == 1:
        return []
    automatic = [t.name for t in declaration.tables if t.sharding == "auto" and sizes[t.name] < below]
    declared = sum(sizes[t.name] for t in declaration.tables if t.sharding == "data_parallel")
    total = sum(sizes.values())
    replicated, chosen = declared, []
    for name in sorted(automatic, key=lambda name: (sizes[name], name)):
        replicated += sizes[name]
        if replicated + (total - replicated) / ranks > hardware.memory:
            break
        chosen.append(name)
    return chosen
