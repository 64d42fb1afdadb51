from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.handed import handle

from dlrm_factory.config import tiny
from dlrm_factory.errors import LimitError, RequestError
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.features.arrow import pyarrow
from dlrm_factory.requests.formats import DecodedRequest, RequestReader, decode_body
from dlrm_factory.requests.formats.arrow import MEDIA_TYPE, decode_arrow, looks_like_arrow

pa = pytest.importorskip("pyarrow")

READER = RequestReader(encoder=FeatureEncoder(tiny()), max_samples=10)
ACCEPT = {"Accept": MEDIA_TYPE}

COLUMNS: dict[str, list[Any]] = {
    "price": [9.5, None, -3.0],
    "age_days": [1, 2, 3],
    "user_id": ["u17", "4", None],
    "item_id": [12, None, 199],
    "item_tags": [[3, 9], [], None],
}


def stream(table: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write(table)
    return sink.getvalue()


def decoded(table: Any) -> DecodedRequest:
    return decode_arrow(stream(table), READER)


def as_json(columns: dict[str, Any], **more: Any) -> DecodedRequest:
    return decode_body({"inputs": columns, **more}, READER)


def assert_same(one: DecodedRequest, other: DecodedRequest) -> None:
    for field in ("dense", "lengths", "values"):
        a, b = getattr(one.batch, field), getattr(other.batch, field)
        assert (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist()), field
    assert (one.asked, one.form) == (other.asked, other.form)


@pytest.mark.parametrize(
    "types",
    [
        {},
        {
            "price": pa.float32(),
            "age_days": pa.int8(),
            "item_id": pa.int32(),
            "item_tags": pa.list_(pa.int16()),
        },
        {"price": pa.float16(), "age_days": pa.uint64(), "item_id": pa.uint64()},
        {"user_id": pa.large_string(), "item_tags": pa.large_list(pa.int64())},
        {"user_id": pa.dictionary(pa.int8(), pa.string())},
        {"item_id": pa.dictionary(pa.int32(), pa.int64())},
    ],
)
def test_types(types: dict[str, Any]) -> None:
    table = pa.table({name: pa.array(column, types.get(name)) for name, column in COLUMNS.items()})
    assert_same(decoded(table), as_json(COLUMNS))
    numbers = {name: column for name, column in COLUMNS.items() if name != "user_id"}
    assert_same(decoded(table.drop_columns(["user_id"])), as_json(numbers))


def test_several_record_batches_and_slices() -> None:
    table = pa.table(COLUMNS)
    several = pa.concat_tables([table.slice(0, 1), table.slice(1, 2)])
    assert_same(decoded(several), as_json(COLUMNS))
    assert_same(
        decoded(several.drop_columns(["user_id"]).slice(1)),
        as_json({k: v[1:] for k, v in COLUMNS.items() if k != "user_id"}),
    )
    empty = decoded(table.slice(0, 0))
    assert len(empty.batch) == 0


def test_lists_of_strings_and_of_one_size() -> None:
    users = [["a", "b"], ["c", "d"]]
    for kind in (
        pa.list_(pa.string()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
    ):
        assert_same(decoded(pa.table({"user_id": pa.array(users, kind)})), as_json({"user_id": users}))
    tags = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    assert_same(decoded(pa.table({"item_tags": tags})), as_json({"item_tags": [[1, 2], None, [3, 4]]}))


def test_ids_are_exact() -> None:
    ids = [2**53 + 1, -(2**63), 2**63 - 1]
    assert_same(decoded(pa.table({"user_id": pa.array(ids, pa.int64())})), as_json({"user_id": ids}))


def test_output_in_the_metadata() -> None:
    table = pa.table({"price": [1.0]}).replace_schema_metadata({"output": "logit", "pandas": "{}"})
    assert_same(decoded(table), as_json({"price": [1.0]}, output="logit"))


@pytest.mark.parametrize(
    "columns",
    [
        {"price": [1.0, float("nan")]},
        {"price": [1.0, 1e39]},
        {"price": ["1", "2"]},
        {"price": [True, False]},
        {"price": [[1.0], [2.0]]},
        {"item_id": [3, 200]},
        {"item_id": [3, -1]},
        {"item_id": ["3", "4"]},
        {"item_id": [3.0, 4.0]},
        {"item_id": [True, False]},
        {"item_tags": [[1, None], [2]]},
        {"item_tags": [[1] * 9, [2]]},
        {"item_tags": [[[1]], [[2]]]},
        {"item_tags": [{"ids": [1], "weights": [1.0]}] * 2},
        {"user_id": pa.array([2**63, 1], pa.uint64())},
        {"usr_id": [1, 2], "pric": [1, 2]},
        {"price": [None, "x"], "item_id": [-1, 200]},
    ],
)
def test_the_same_errors_as_of_json(columns: dict[str, Any]) -> None:
    plain = {name: c.to_pylist() if isinstance(c, pa.Array) else c for name, c in columns.items()}
    with pytest.raises(RequestError) as expected:
        as_json(plain)
    with pytest.raises(RequestError) as caught:
        decoded(pa.table(columns))
    assert caught.value.body() == expected.value.body()


@pytest.mark.parametrize(
    ("table", "path", "said"),
    [
        (
            pa.table({"price": pa.array([1], pa.timestamp("s"))}),
            "$.inputs.price",
            "has the type timestamp[s]",
        ),
        (pa.table({"price": pa.array([b"1"])}), "$.inputs.price", "has the type binary"),
        (pa.table({"price": pa.array([1], pa.decimal128(5))}), "$.inputs.price", "has the type decimal128"),
        (pa.table([[1], [2]], names=["price", "price"]), "$.inputs.price", "two columns"),
        (pa.table({}), "$.inputs", "no columns"),
        (pa.table({"price": [1.0]}).replace_schema_metadata({"output": "odds"}), "$.output", "odds"),
        (pa.table({"price": [1.0] * 11}), "$.inputs", "11 samples are over max_samples 10"),
    ],
)
def test_mistakes(table: Any, path: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        decoded(table)
    assert caught.value.path == path
    assert said in caught.value.message


def test_compressed_streams_are_refused_before_they_are_read() -> None:
    table = pa.table({"price": [0.0] * 1000, "user_id": pa.array(["a"] * 1000).dictionary_encode()})
    for codec in ("zstd", "lz4"):
        if pa.Codec.is_available(codec):
            with pytest.raises(RequestError, match="is compressed"):
                decode_arrow(stream(table, compression=codec), READER)


RAW = stream(pa.table(COLUMNS))


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff" * 4, b"\xff" * 16, RAW[:40], RAW[: len(RAW) // 2]])
def test_what_is_no_stream(raw: bytes) -> None:
    with pytest.raises(RequestError, match="not an Arrow stream"):
        decode_arrow(raw, READER)


@given(st.randoms(use_true_random=False))
@settings(max_examples=examples(400))
def test_damaged_streams_are_refused_or_read(rng: Any) -> None:
    damaged = bytearray(RAW)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged))
        damaged[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    try:
        decode_arrow(bytes(damaged), READER)
    except RequestError as error:
        json.dumps(error.body())


def test_over_the_wire(service: Any) -> None:
    table = pa.table({"price": [0.5, 1.5], "item_tags": [[1, 2], [4]]}).replace_schema_metadata(
        {"output": "logit"}
    )
    raw = stream(table)
    assert looks_like_arrow(raw)
    bad = stream(pa.table({"price": ["x"]}))
    requests = [{"body": bytearray(raw)}, {"body": raw}, {"body": bad}, {"body": b"\xff\xff\xff\xffgarbage"}]
    plain, arrow, wrong, garbage = handle(service, requests, [{}, ACCEPT, ACCEPT, {}])
    assert json.loads(plain.body) == {"predictions": [0.8, 1.9]}
    assert plain.content_type == "application/json"
    assert (arrow.status, arrow.content_type) == (200, MEDIA_TYPE)
    scores = pa.ipc.open_stream(arrow.body).read_all()
    assert scores.schema == pa.schema({"score": pa.float32()})
    assert scores["score"].to_numpy().tolist() == np.array([0.8, 1.9], dtype=np.float32).tolist()
    assert (wrong.status, wrong.content_type) == (400, "application/json")
    assert json.loads(wrong.body)["path"] == "$.inputs.price[0]"
    assert garbage.status == 400


def test_json_asked_for_arrow(service: Any) -> None:
    body = {"body": json.dumps({"instances": [{"price": 0.5}], "output": "logit"}).encode()}
    upstream = {
        "float_features": [1, 2],
        "id_list_features.lengths": [0, 0, 0],
        "id_list_features.values": [],
    }
    for headers in (ACCEPT, {"accept": f"application/json;q=0.1, {MEDIA_TYPE}"}):
        arrow, one = handle(service, [body, {"body": json.dumps(upstream).encode()}], [headers] * 2)
        assert pa.ipc.open_stream(arrow.body).read_all()["score"].to_pylist() == [0.5]
        assert one.content_type == "application/json"


def test_called_arrow_but_not(service: Any) -> None:
    (answer,) = handle(service, [{"body": b'{"instances": []}'}], [{"Content-Type": MEDIA_TYPE}])
    assert answer.status == 400
    assert "not an Arrow stream" in json.loads(answer.body)["message"]


def test_without_pyarrow(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    pyarrow.cache_clear()
    good = {"body": b'{"instances": [{}]}'}
    answers = handle(service, [{"body": RAW}, good, good], [{}, ACCEPT, {}])
    assert [answer.status for answer in answers] == [400, 400, 200]
    assert "install pyarrow" in json.loads(answers[0].body)["message"]


@pytest.mark.parametrize(
    "types",
    [
        {"user_id": pa.string_view()},
        {"item_tags": pa.list_view(pa.int64())},
        {"item_tags": pa.large_list_view(pa.int32())},
        {"user_id": pa.dictionary(pa.int32(), pa.large_string())},
    ],
)
def test_views_as_polars_writes_them_are_read(types: dict[str, Any]) -> None:
    arrays = {name: pa.array(values) for name, values in COLUMNS.items()}
    for name, kind in types.items():
        arrays[name] = pa.array(COLUMNS[name], kind)
    assert_same(decoded(pa.table(arrays)), as_json(COLUMNS))


@pytest.mark.parametrize("kind", [pa.list_view(pa.int64()), pa.large_list_view(pa.int64())], ids=str)
def test_every_bag_of_a_list_view_is_read(kind: Any) -> None:
    bags = [[1], None, [2, 3], [4, 5, 1]]
    column = pa.array([[7], *bags], kind).slice(1)
    assert_same(decoded(pa.table({"item_tags": column})), as_json({"item_tags": bags}))


def test_list_views_that_overlap_are_refused() -> None:
    """A small body could ask for more memory than the machine has."""
    ones = pa.array([1] * 4)
    column = pa.ListViewArray.from_arrays(pa.array([0, 0, 0]), pa.array([4, 4, 4]), ones)
    with pytest.raises(RequestError, match=r"item_tags.*overlap"):
        decoded(pa.table({"item_tags": column}))


def test_list_views_of_a_struct_may_not_overlap_either() -> None:
    ids = pa.ListViewArray.from_arrays(pa.array([0, 0, 0]), pa.array([4, 4, 4]), pa.array([1] * 4))
    column = pa.StructArray.from_arrays([ids, ids], ["ids", "weights"])
    with pytest.raises(RequestError, match=r"item_tags.*overlap"):
        decoded(pa.table({"item_tags": column}))


SHARED = [
    pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int8()), pa.array(["x" * (8 << 20)])),
    pa.DictionaryArray.from_arrays(
        pa.array([0] * 9, pa.int8()), pa.array(["x" * (8 << 20)], pa.string_view())
    ),
]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("column", SHARED, ids=["text", "view"])
def test_a_text_that_all_samples_share_is_not_copied_without_bounds(column: Any, listed: bool) -> None:
    if listed:
        column = pa.ListArray.from_arrays(pa.array([0, *range(1, 10)], pa.int32()), column)
    with pytest.raises(LimitError, match=r"user_id.*64\.0 MB"):
        decoded(pa.table({"user_id": column}))
    assert decoded(pa.table({"user_id": column.slice(0, 1)})) is not None


HUGE = 2**30
EMPTY = [
    pa.ListArray.from_arrays(pa.array([0, HUGE], pa.int32()), pa.nulls(HUGE)),
    pa.FixedSizeListArray.from_arrays(pa.nulls(HUGE), HUGE),
    pa.LargeListArray.from_arrays(
        pa.array([0, HUGE]), pa.StructArray.from_buffers(pa.struct([]), HUGE, [None], children=[])
    ),
    pa.LargeListArray.from_arrays(
        pa.array([0, HUGE]),
        pa.FixedSizeListArray.from_buffers(
            pa.list_(pa.int8(), 0), HUGE, [None], children=[pa.array([], pa.int8())]
        ),
    ),
]


@pytest.mark.parametrize("column", EMPTY, ids=lambda column: str(column.type))
def test_lists_of_values_without_a_byte_are_bounded(column: Any) -> None:
    with pytest.raises(LimitError, match=r"item_tags.*64\.0 MB"):
        decoded(pa.table({"item_tags": column}))


def test_the_texts_of_all_columns_share_one_bound() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 5, pa.int8()), pa.array(["x" * (8 << 20)]))
    with pytest.raises(LimitError, match=r"64\.0 MB"):
        decoded(pa.table({"user_id": column, "item_id": column}))


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize("name", ["price", "user_id", "item_id", "item_tags"])
def test_a_dictionary_of_nothing_holds_missing_values(name: str, size: int) -> None:
    column = pa.DictionaryArray.from_arrays(pa.nulls(size, pa.int32()), pa.nulls(0))
    assert_same(decoded(pa.table({name: column})), as_json({name: [None] * size}))


def test_the_index_of_pandas_is_left_out() -> None:
    table = pa.table({"price": [1.0, 2.0], "__index_level_0__": [7, 8], "__index_level_1__": ["a", "b"]})
    assert_same(decoded(table), as_json({"price": [1.0, 2.0]}))
    with pytest.raises(RequestError, match="index_level"):
        decoded(pa.table({"price": [1.0], "__index_level_x__": [7]}))


KINDS = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.string(), pa.large_string(),
    pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.date32(), pa.date64(),
    pa.time32("s"), pa.time64("ns"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.duration("ms"),
    pa.month_day_nano_interval(), pa.decimal128(9, 2), pa.decimal256(40, 2), pa.list_(pa.int8()),
    pa.list_(pa.string_view()), pa.list_(pa.null()), pa.list_(pa.int64(), 2), pa.large_list(pa.float32()),
    pa.list_view(pa.string_view()), pa.large_list_view(pa.int8()), pa.struct([]),
    pa.struct([("ids", pa.list_(pa.int64())), ("weights", pa.list_(pa.float32()))]),
    pa.struct([("a", pa.string_view())]), pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int8(), pa.null()), pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.list_(pa.int64())), pa.list_(pa.dictionary(pa.int8(), pa.string())),
    pa.list_(pa.list_(pa.int64())), pa.run_end_encoded(pa.int32(), pa.string()),
    pa.dense_union([pa.field("a", pa.int64())]), pa.sparse_union([pa.field("a", pa.int64())]),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", [0, 2])
def test_no_type_of_arrow_is_a_fault_of_ours(kind: Any, size: int) -> None:
    """Every column of nulls is missing values, or an error that names the column."""
    for name in ("price", "user_id", "item_id", "item_tags"):
        try:
            column = pa.nulls(size, kind)
            sent = stream(pa.table({name: column}))
        except pa.ArrowException:
            pytest.skip("pyarrow cannot make or write such a column")
        wanted = as_json({name: [None] * size})
        try:
            found = decode_arrow(sent, READER)
        except RequestError as error:
            told = str(error)
        else:
            assert_same(found, wanted)
            continue
        assert name in told
