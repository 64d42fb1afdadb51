"""Models that tests score in groups of ranks, and then hold against the same in one process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import dlrm_factory.ranks.messages
import dlrm_factory.scorer
from dlrm_factory.batch import FeatureBatch, SharedContext
from dlrm_factory.compiled.dense_net import make_dense_net
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import DLRMError, GroupError, LimitError, ModuleError, RankError, RequestError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.goldens import read_goldens
from dlrm_factory.model.model import load_dense, make_model
from dlrm_factory.model.quantize import kernels_of
from dlrm_factory.ranks import RankedScorer, RankGroup, follow, load_rank
from dlrm_factory.ranks.lookup import RankLookup
from dlrm_factory.ranks.messages import Messages
from dlrm_factory.ranks.sequences import SequencesUnderWay
from dlrm_factory.ranks.step import reason_of
from dlrm_factory.requests.replay import replay_with
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import EAGER_TOLERANCE, Scorer
from dlrm_factory.weights.sealed import read_dense
from support import sequences
from support.batches import random_batch, random_state
from support.handed import handle
from support.nets import trusted
from support.sequences import even_batch, sequence_cases, with_shardings
from support.sharding import ARCHITECTURES, DTYPES, POOLINGS, SHARDINGS, declared, mixed_shardings, weighted

SIZES = (2, 3, 4)
TIMEOUT_S = 3.0
# Dense values with which the user's own module fails.
OF_MODULES = {
    1235.5: ModuleError("Net cannot score: net.py:3 (forward): ValueError: no"),
    1236.5: RequestError("price is negative: no", "$.instances[1].price"),
    1237.5: LimitError("price is long"),
}
MORE_ASKED = ("mixed", "sequences-mixed-1")  # cases that are asked more
MARKER = 1234.5  # a dense value that makes a rank misbehave
ROWS = [{"price": 9.5, "user_id": "u17", "item_tags": [3, 9]}, {"age_days": 3, "item_id": 12}]
BODIES = (
    ({"instances": ROWS}, {}),
    ({"instances": ROWS, "output": "logit"}, {"explain": "True"}),
    ({"context": ROWS[0], "candidates": [{"id": f"sku-{i}", "item_id": i} for i in range(9)]}, {}),
)


def cases(size: int) -> Iterator[tuple[str, DLRMDeclaration]]:
    """(name, declaration): every sharding and pooling; dtypes and architectures take turns, others for each size."""
    architectures = list(ARCHITECTURES)
    for i, (sharding, pooling) in enumerate(itertools.product(SHARDINGS, POOLINGS)):
        dtypes, architecture = DTYPES[(i + size) % len(DTYPES)], architectures[(i + size) % 3]
        name = f"{sharding}-{pooling}-{'+'.join(dtypes)}-{architecture}"
        declaration = declared(sharding, pooling, dtypes, architecture)
        yield name, declaration
        if (i + size) % 2:
            yield f"{name}-weighted", weighted(declaration)
    yield from sequence_cases(size)
    for name in ("dcn_v2", "deepfm", "dlrm_transformer", "mmoe"):
        yield name, with_shardings(trusted(name), "row_wise", "column_wise")
    yield "mixed", mixed_shardings()
    yield "mixed-weighted", weighted(mixed_shardings())
    yield "towers", several_outputs()


def several_outputs() -> DLRMDeclaration:
    """Two towers: a logit and two vectors, of tables of two widths and three shardings."""
    declaration = trusted("two_towers")
    shardings = ("row_wise", "column_wise", "table_wise")
    tables = [
        msgspec.structs.replace(table, sharding=sharding)
        for table, sharding in zip(declaration.tables, shardings, strict=True)
    ]
    return msgspec.structs.replace(declaration, tables=tables)


def batches(declaration: DLRMDeclaration, size: int) -> Iterator[tuple[FeatureBatch, SharedContext | None]]:
    """One sample, fewer than ranks, some, with and without ids; contexts that cross slices."""
    yield random_batch(declaration, 1, seed=1), None
    yield random_batch(declaration, size - 1, seed=2), None
    yield random_batch(declaration, 2 * size + 1, seed=3), None
    yield random_batch(declaration, 3, longest=0, steps=0), None
    count = len(declaration.sparse_features)
    of_context, of_sample = list(range(0, count, 2)), list(range(1, count, 2))
    samples = without(random_batch(declaration, 9, seed=4), of_context)
    contexts = without(random_batch(declaration, 3, seed=5), of_sample)
    yield samples, SharedContext(bags=contexts, spans=[(0, 4), (6, 8), (8, 9)])
    contexts = without(random_batch(declaration, 1, seed=6), of_sample)
    yield samples, SharedContext(bags=contexts, spans=[(0, 9)])
    if declaration.sequence_features:
        samples, contexts = (
            without(random_batch(declaration, n, seed=13), features)
            for n, features in ((9, of_sample), (2, of_context))
        )
        yield samples, SharedContext(bags=contexts, spans=[(1, 4), (4, 9)])
        yield random_batch(declaration, 2 * size + 1, seed=11, longest=0), None
        yield random_batch(declaration, 2 * size + 1, seed=15, steps=0), None
        yield random_batch(declaration, size + 1, seed=12, steps=sequences.MAX_STEPS), None


def without(batch: FeatureBatch, features: list[int]) -> FeatureBatch:
    """``batch`` with empty bags for ``features``."""
    lengths = batch.lengths.copy()
    lengths[features] = 0
    kept = np.repeat(np.isin(np.arange(len(lengths)), features, invert=True), batch.lengths.sum(axis=1))
    weights = None if batch.weights is None else batch.weights[kept]
    return FeatureBatch(dense=batch.dense, lengths=lengths, values=batch.values[kept], weights=weights)


def score_cases(scorer: Scorer | RankedScorer, size: int) -> list[list[float]]:
    """Outputs of every batch of a case, sample after sample."""
    found = [scorer.outputs(batch, shared) for batch, shared in batches(scorer.declaration, size)]
    found.append(scorer.reference_logits(random_batch(scorer.declaration, 5, seed=7)))
    return [outputs.reshape(-1).tolist() for outputs in found]


def score_large(scorer: Scorer | RankedScorer) -> list[list[float]]:
    """Logits of no sample, and of batches that need a second message and pieces."""
    one_each = random_batch(scorer.declaration, 2048, seed=8)
    ones = np.ones_like(one_each.lengths)
    values = np.random.default_rng(9).integers(0, 1000, ones.size)
    rows = [scorer.declaration.table(f.table).num_embeddings for f in scorer.declaration.sparse_features]
    values %= np.repeat(rows, 2048)
    batch = FeatureBatch(dense=one_each.dense, lengths=ones, values=values, one_each=True, in_range=True)
    given = [random_batch(scorer.declaration, size) for size in (0, 700)]
    return [scorer.logits(each).tolist() for each in (*given, batch)]


def ask_service(scorer: Scorer | RankedScorer) -> list[object]:
    """Answers of the service to some bodies."""
    service = DLRMService(scorer)
    bodies = sequences.BODIES if scorer.declaration.sequence_features else BODIES
    requests = [{"body": bytearray(json.dumps(body).encode())} for body, _ in bodies]
    answers = handle(service, requests, [headers for _, headers in bodies])
    assert [answer.status for answer in answers] == [200] * len(bodies), [answer.body for answer in answers]
    return [json.loads(answer.body) for answer in answers]


def score_in_bfloat16(ranked: RankedScorer) -> dict[str, object]:
    """Logits of a batch whose vectors cross in bfloat16, and the bytes that crossed, beside those in float32."""
    batch = random_batch(ranked.declaration, 48, seed=10)
    ranked.logits(batch)
    sent = [ranked.times.sent]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "pooled_dtype", torch.bfloat16)
        logits = ranked.logits(batch).tolist()
    return {"logits": logits, "sent": [*sent, ranked.times.sent]}


def sent_bytes(ranked: RankedScorer) -> list[int]:
    """Bytes that ranks send one another for `even_batch`: each scores its slice, then the leader all."""
    batch = even_batch(ranked.declaration, ranked.built.plan.hardware.world_size)
    found = []
    for ranked.min_spread in (1, 1000):
        ranked.logits(batch)
        found.append(ranked.times.sent)
    return found


def served(declaration: DLRMDeclaration, group: RankGroup) -> Scorer:
    return Scorer(DLRMFactory(declaration).build(weights=random_state(declaration), group=group.exchange))


def score_all(out: Path, sealed: Path) -> None:
    """Every case in one group; the leader writes what it finds, as JSON."""
    group = RankGroup.join(timeout_s=60)
    if group.size == 3:
        dlrm_factory.ranks.messages.FIRST_BYTES = 400  # so that parts come in a second message
    found: dict[str, object] = {}
    for name, declaration in cases(group.size):
        scorer = served(declaration, group)
        if group.rank:
            follow(scorer, group)
            continue
        ranked = RankedScorer(scorer, group)
        found[name] = score_cases(ranked, group.size)
        found[f"{name}, sent"] = ranked.times.sent
        ranked.min_spread = 1
        found[f"{name}, spread"] = score_cases(ranked, group.size)
        if name in MORE_ASKED:
            found[f"{name}, bf16"] = score_in_bfloat16(ranked)
            found[f"{name}, large"] = score_large(ranked)
            found[f"{name}, service"] = ask_service(ranked)
        if name.startswith("sequences"):
            found[f"{name}, bytes"] = sent_bytes(ranked)
        ranked.stop()
    found.update(score_sealed(sealed / "mixed", group))
    found["sequences"] = score_sealed(sealed / "sequences", group)
    found["errors"] = score_errors(group)
    found["sequence errors"] = score_sequence_errors(group)
    if group.rank == 0:
        (out / f"{group.size}.json").write_text(json.dumps(found))


def score_sealed(folder: Path, group: RankGroup) -> dict[str, object]:
    """The sealed weights in ``folder``: golden requests, the table file in place, compiled dense parts."""
    scorer = load_rank(folder, group)
    # A compiler takes half a minute; what it would compile runs as it is.
    model = make_model(scorer.declaration)
    load_dense(model, read_dense(folder))
    net = torch.no_grad()(make_dense_net(model, scorer.declaration, "fp32").eval())

    def compiled(dense, found):
        kinds = (found.sequences, found.lengths, found.shared) if found.sequences else ()
        return net(dense, found.pooled, *kinds)

    dlrm_factory.scorer.compiled_dense = lambda *_, **__: compiled
    if group.rank:
        follow(scorer, group, folder=folder)
        assert scorer.engine == "compiled"
        return {}
    ranked = RankedScorer(scorer, group)
    eager = replay_with(ranked, read_goldens(folder), EAGER_TOLERANCE)
    found = {"sealed": score_cases(ranked, group.size), "eager": eager, "in_place": in_place(scorer)}
    ranked.compile(folder, probes=[random_batch(scorer.declaration, 40)])
    found |= {"engine": ranked.engine, "compiled": score_cases(ranked, group.size)}
    ranked.stop()
    return found


def in_place(scorer: Scorer) -> dict[str, bool]:
    """Test whether the lookup of each table on this rank reads the table file where it lies."""
    mapped = scorer._lookup._file.bytes.data_ptr()
    return {
        table.name: kernel.tbe.weights_host.data_ptr() == mapped
        for kernel in kernels_of(scorer.built.model)
        for table in kernel.tables
    }


def score_errors(group: RankGroup) -> dict[str, object]:
    """The last rank fails in its dense parts, then in its lookup, also where the leader alone scores; ids are wrong."""
    declaration = declared("row_wise", "mean", DTYPES[2])
    scorer = served(declaration, group)
    batch = random_batch(declaration, 3 * group.size)
    if group.rank:
        if group.rank == group.size - 1:
            fail_on_marker(scorer)
        follow(scorer, group)
        return {}
    ranked = RankedScorer(scorer, group, min_spread=1)
    before = ranked.logits(batch)
    marked = msgspec.structs.replace(batch, dense=batch.dense.copy())
    marked.dense[-1] = MARKER
    told = []
    negative = msgspec.structs.replace(
        batch, values=np.where(batch.values == batch.values[0], -1, batch.values)
    )
    for each, min_spread in ((marked, 1), (negative, 1), (marked, 1), (batch, 1000)):
        ranked.min_spread = min_spread
        try:
            ranked.logits(each)
        except (RankError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
    of_module = []
    ranked.min_spread = 1
    for number in OF_MODULES:
        marked.dense[-1] = number
        try:
            ranked.logits(marked)
        except (ModuleError, RequestError) as error:
            of_module.append(reason_of(error))
    # No rank's error, although vectors of a rank that has failed look like this.
    unknown = ranked.logits(msgspec.structs.replace(batch, dense=np.full_like(batch.dense, np.nan)))
    ranked.min_spread = 1
    after = ranked.logits(batch)
    ranked.stop()
    return {
        "before": before.tolist(),
        "after": after.tolist(),
        "told": told,
        "of_module": of_module,
        "unknown": bool(np.isnan(unknown).all()),
    }


def score_sequence_errors(group: RankGroup) -> dict[str, object]:
    """The last rank fails as it looks sequences up: where each rank scores, and where the leader alone does."""
    declaration = sequences.ordered(("row_wise", "column_wise", "table_wise", "row_wise"))
    scorer = served(declaration, group)
    if group.rank == group.size - 1:
        before_lookups(lambda count: count == 1 or fail_first(count - 1), SequencesUnderWay, "look_up")
    if group.rank:
        follow(scorer, group)
        return {}
    ranked = RankedScorer(scorer, group, min_spread=1)
    batch = random_batch(declaration, 3 * group.size)
    before, told = ranked.logits(batch), []
    for ranked.min_spread in (1, 1000):
        try:
            ranked.logits(batch)
        except RankError as error:
            told.append(str(error))
    ranked.min_spread = 1
    after = ranked.logits(batch)
    ranked.stop()
    return {"before": before.tolist(), "after": after.tolist(), "told": told}


def fail_on_marker(scorer: Scorer) -> None:
    """Raise in the dense parts for a marked sample; once it was seen, in the next two lookups."""
    interact, fails = scorer.interact, []

    def marked(dense, pooled, *, eagerly=False):
        for number, error in OF_MODULES.items():
            if (dense == number).any():
                raise error
        if (dense == MARKER).any():
            if not fails:
                fails.append(1)
                before_lookups(fail_first)
            raise DLRMError("the dense parts are out of order")
        return interact(dense, pooled, eagerly=eagerly)

    scorer.interact = marked


def fail_first(count: int) -> None:
    if count <= 2:
        raise MemoryError("no memory for the lookup")


def before_lookups(call: Callable[[int], None], kind: type = RankLookup, method: str = "sharded") -> None:
    """Call ``call`` with 1, 2, … before each further lookup of this process."""
    look_up, lookups = getattr(kind, method), []

    def counted(self, *arguments):
        lookups.append(1)
        call(len(lookups))
        return look_up(self, *arguments)

    setattr(kind, method, counted)


def lose_a_rank(out: Path, how: str) -> None:
    """A rank of three ends or stops in the middle of a batch: the leader for ``leader``, else the last one.

    ``between``: it stops when its batch is answered, before it waits for the next one. ``sequences``: it stops, and
    the model has these.
    """
    group = RankGroup.join(timeout_s=TIMEOUT_S)
    declaration = declared("row_wise", "sum", DTYPES[2])
    if how == "sequences":
        declaration = sequences.ordered(("row_wise",) * 4)
    scorer = served(declaration, group)
    victim = 0 if how == "leader" else group.size - 1
    if group.rank == victim and how == "between":
        stop_after_first_answer()
    elif group.rank == victim:
        die_on_second_lookup(signal.SIGSTOP if how in ("stopped", "sequences") else signal.SIGKILL)
    if group.rank:
        follow(scorer, group)
        return
    # A rank that scores nothing answers nothing.
    ranked = RankedScorer(scorer, group, min_spread=1 if how == "between" else 128)
    batch = random_batch(declaration, 30)
    assert np.isfinite(ranked.logits(batch)).all()
    started = time.monotonic()
    told = []
    for _ in range(2):
        try:
            ranked.logits(batch)
        except GroupError as error:
            told.append(str(error))
    found = {"told": told, "seconds": time.monotonic() - started}
    body = (sequences.BODIES if how == "sequences" else BODIES)[0][0]
    answer = handle(DLRMService(ranked), [{"body": bytearray(json.dumps(body).encode())}])[0]
    found |= {"status": answer.status, "answer": json.loads(answer.body)}
    (out / f"{how}.json").write_text(json.dumps(found))
    time.sleep(60)  # as a server would wait for its next request


def stop_after_first_answer() -> None:
    answer = Messages.answer

    def stopping(self, *arguments, **options):
        answer(self, *arguments, **options)
        os.kill(os.getpid(), signal.SIGSTOP)

    Messages.answer = stopping


def die_on_second_lookup(number: signal.Signals) -> None:
    before_lookups(lambda count: os.kill(os.getpid(), number) if count == 2 else None)
