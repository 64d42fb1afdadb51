"""A sample is encoded the same whether it comes from a table of clicks or in a request."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.raw_features import ITEMS, raw_declaration, raw_vocabularies

from dlrm_factory.config import tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.features.vocabulary_rows import VocabularyRows
from dlrm_factory.tools.data.dataset_builder import dataset_of
from dlrm_factory.tools.data.encoding import encode_chunk
from dlrm_factory.tools.data.files import read_chunks
from dlrm_factory.tools.data.writing import click_writer

numbers = st.none() | st.floats(-1e6, 1e6, width=32)
# No separator and no empty text: these do not survive a CSV cell.
texts = st.text(st.characters(codec="utf-8", exclude_characters="|\r\n\0"), min_size=1, max_size=8)
user_ids = texts | st.integers(-(2**63), 2**63 - 1).map(str)
rows = st.fixed_dictionaries(
    {
        "price": numbers,
        "age_days": numbers,
        "user_id": st.none() | user_ids,
        "item_id": st.none() | st.integers(0, 199),
        "item_tags": st.lists(st.integers(0, 49), max_size=8),
    }
)


@settings(max_examples=examples(40))
@given(st.lists(rows, min_size=1, max_size=8))
def test_tables_and_requests_give_the_same_samples(drawn):
    declaration = tiny()
    columns = {name: [row[name] for row in drawn] for name in drawn[0]}
    served = FeatureEncoder(declaration).encode(columns, len(drawn))
    batch = pa.RecordBatch.from_pydict({"click": [0] * len(drawn)} | columns, schema=_SCHEMA)
    with TemporaryDirectory() as folder:
        for name in ("clicks.parquet", "clicks.csv"):
            path = Path(folder) / name
            with click_writer(path, "|") as writer:
                writer.write(batch)
            chunks = [encode_chunk(chunk, declaration) for chunk in read_chunks([path], declaration)]
            trained = dataset_of(chunks, declaration).features(np.arange(len(drawn)))
            assert trained.dense.tobytes() == served.dense.tobytes()
            assert trained.lengths.tolist() == served.lengths.tolist()
            assert trained.values.tolist() == served.values.tolist()


_SCHEMA = pa.schema(
    {
        "click": pa.int8(),
        "price": pa.float64(),
        "age_days": pa.float64(),
        "user_id": pa.string(),
        "item_id": pa.int64(),
        "item_tags": pa.list_(pa.int64()),
    }
)


raw_rows = st.fixed_dictionaries(
    {
        "price": numbers,
        "hour": numbers,
        "visits": numbers,
        "user": st.none() | st.sampled_from(["user_3", "user_19", "nobody", "4", "-4"]),
        "item": st.none() | st.sampled_from(ITEMS),
        "seen": st.lists(
            st.tuples(st.sampled_from([*ITEMS[:4], "gone"]), st.floats(-9, 9, width=32)), max_size=6
        ),
        "tags": st.lists(st.integers(0, 49), max_size=8),
    }
)


@settings(max_examples=examples(40))
@given(st.lists(raw_rows, min_size=1, max_size=6))
def test_vocabularies_weights_and_statistics_are_the_same_too(drawn):
    declaration, vocabularies = raw_declaration(), raw_vocabularies()
    columns = {name: [row[name] for row in drawn] for name in drawn[0]}
    ids = [[raw for raw, _ in bag] for bag in columns["seen"]]
    weights = [[weight for _, weight in bag] for bag in columns["seen"]]
    sent = [{"ids": own, "weights": w} for own, w in zip(ids, weights, strict=True)]
    served = FeatureEncoder(declaration, vocabularies).encode(columns | {"seen": sent}, len(drawn))
    data = columns | {"label": [0] * len(drawn), "seen": ids, "seen.weights": weights}
    data["click"] = data.pop("label")
    batch = pa.RecordBatch.from_pydict({name: data[name] for name in _RAW_SCHEMA.names}, schema=_RAW_SCHEMA)
    vocabulary = VocabularyRows(declaration, vocabularies)
    with TemporaryDirectory() as folder:
        for name in ("clicks.parquet", "clicks.csv"):
            path = Path(folder) / name
            with click_writer(path, "|") as writer:
                writer.write(batch)
            chunks = [
                encode_chunk(chunk, declaration, vocabulary) for chunk in read_chunks([path], declaration)
            ]
            trained = dataset_of(chunks, declaration).features(np.arange(len(drawn)))
            assert trained.dense.tobytes() == served.dense.tobytes()
            assert trained.lengths.tolist() == served.lengths.tolist()
            assert trained.values.tolist() == served.values.tolist()
            assert trained.weights.tolist() == served.weights.tolist()


_RAW_SCHEMA = pa.schema(
    {
        "click": pa.int8(),
        "price": pa.float64(),
        "hour": pa.float64(),
        "visits": pa.float64(),
        "user": pa.string(),
        "item": pa.string(),
        "seen": pa.list_(pa.string()),
        "seen.weights": pa.list_(pa.float64()),
        "tags": pa.list_(pa.int64()),
    }
)
