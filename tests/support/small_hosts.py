"""Models served from processes that stand for hosts: each with a limit on its memory, and a table file of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from dlrm_factory.batch import FeatureBatch
from dlrm_factory.config import DLRMDeclaration, criteo
from dlrm_factory.ranks import RankedScorer, RankGroup, follow, load_rank
from dlrm_factory.scorer import Scorer
from support.mapped_files import resident
from support.memory_groups import MemoryGroup

SAMPLES = 64  # of a request
_TABLES, _WARM, _MEASURED = 4, 50, 100
_MAJOR_FAULTS = 9  # of /proc/PID/stat, counted from after the name


def large_model(rows: int) -> DLRMDeclaration:
    """A small network over four tables of 64 columns in int8, 68 bytes a row, none of which is replicated."""
    base = criteo()
    return msgspec.structs.replace(
        base,
        dense_arch_layer_sizes=[64],
        over_arch_layer_sizes=[16, 1],
        sparse_features=base.sparse_features[:_TABLES],
        tables=[msgspec.structs.replace(t, num_embeddings=rows) for t in base.tables[:_TABLES]],
        sharding=msgspec.structs.replace(base.sharding, replicate_below=0),
    )


def serve(folders: list[Path], groups: list[MemoryGroup] | None, out: Path) -> None:
    """Score random requests: rank i from ``folders[i]``, within ``groups[i]`` if there are any; alone if it is one.

    Each writes ``out/RANK.json``.
    """
    rank = int(os.environ["RANK"])
    if groups is not None:
        groups[rank].enter()
    (out / f"{rank}.pid").write_text(str(os.getpid()))
    if len(folders) == 1:
        scorer = Scorer.load(folders[0])
        found = measure(scorer, out)
    else:
        group = RankGroup.join(timeout_s=60)
        scorer = load_rank(folders[rank], group)
        if rank:
            follow(scorer, group)
            found = {}
        else:
            ranked = RankedScorer(scorer, group)
            found = measure(ranked, out)
            ranked.stop()
    found["resident"] = resident(folders[rank] / "tables.bin")
    found["planned"] = scorer.built.plan.rank_bytes()[rank]
    (out / f"{rank}.json").write_text(json.dumps(found))


def measure(scorer: Scorer | RankedScorer, out: Path) -> dict[str, object]:
    """Rates and faults of requests for random rows in the steady state, of all ranks together, and the last logits."""
    rows, random = scorer.declaration.tables[0].num_embeddings, np.random.default_rng(1)
    for batch in every_page(rows):
        scorer.logits(batch)
    requests = [_batch(random.integers(0, rows, size=_TABLES * SAMPLES)) for _ in range(_WARM + _MEASURED)]
    for batch in requests[:_WARM]:
        scorer.logits(batch)
    pids = [path.read_text() for path in out.glob("*.pid")]
    before, read = major_faults(pids), read_bytes(pids)
    faulted, taken = 0, []
    for batch in requests[_WARM:]:
        earlier, started = major_faults(pids), time.perf_counter()
        logits = scorer.logits(batch)
        taken.append(time.perf_counter() - started)
        faulted += major_faults(pids) > earlier
    return {
        "samples_per_s": SAMPLES * _MEASURED / sum(taken),
        "p50_ms": 1e3 * float(np.median(taken)),
        "p99_ms": 1e3 * float(np.percentile(taken, 99)),
        "reading": faulted / _MEASURED,
        "faults": (major_faults(pids) - before) / _MEASURED,
        "read_bytes": (read_bytes(pids) - read) / _MEASURED,
        "logits": logits.tolist(),
    }


def major_faults(pids: Sequence[str]) -> int:
    """Faults so far for which a page had to be read from disk."""
    stats = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(fields[_MAJOR_FAULTS]) for fields in stats)


def read_bytes(pids: Sequence[str]) -> int:
    """Bytes read from disk so far."""
    lines = (line.split() for pid in pids for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return sum(int(value) for name, value in lines if name == "read_bytes:")


def every_page(rows: int) -> Iterator[FeatureBatch]:
    """Batches that touch every page of the tables: of 50 rows, which take 3,400 bytes, one."""
    for part in np.array_split(np.arange(0, rows, 50), 20):
        yield _batch(np.tile(part, _TABLES))


def _batch(values: np.ndarray) -> FeatureBatch:
    size = len(values) // _TABLES
    return FeatureBatch(
        dense=np.zeros((size, 13), dtype=np.float32),
        lengths=np.ones((_TABLES, size), dtype=np.int32),
        values=values.astype(np.int64),
        one_each=True,
        in_range=True,
    )


def drop_from_cache(folder: Path) -> None:
    """Let the page cache forget the files of ``folder``: who touches a page next has it in its own memory."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
