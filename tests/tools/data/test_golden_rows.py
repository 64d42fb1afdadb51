"""Raw rows for golden requests: a client who sent them would get the scores that training saw."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.config import tiny
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.tools.data.files import Chunk
from dlrm_factory.tools.data.golden_rows import golden_rows_json, pick_golden_rows
from dlrm_factory.tools.data.split import split_rows

CSV = """price,hour,visits,user,item,seen,seen.weights,tags,clicked
9.5,3,,user_3,item_1,item_2|item_3,0.5|-2,1|2,1
,,2,4,,,,,0
many,1,1,user_1,item_1,,,,0
1,1,1,user_1,item_1,item_2,1|2,,0
1,1,1,user_1,item_1,,,x,0
1e39,1,1,user_1,item_1,,,,0
"""
ROWS = [
    {
        "price": 9.5,
        "hour": 3.0,
        "visits": 0.0,
        "user": "user_3",
        "item": "item_1",
        "seen": {"ids": ["item_2", "item_3"], "weights": [0.5, -2.0]},
        "tags": [1, 2],
    },
    {
        "price": 5.0,  # the default
        "hour": 12.0,
        "visits": 2.0,
        "user": "4",
        "item": [],
        "seen": {"ids": [], "weights": []},
        "tags": [],
    },
]


def test_rows_of_a_file_as_requests_and_wrong_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text(CSV)
    rows = msgspec.json.decode(golden_rows_json(raw_declaration(), [tmp_path / "clicks.csv"]))
    assert rows == ROWS
    encoder = FeatureEncoder(raw_declaration(), raw_vocabularies())
    batch = encoder.encode({name: [row[name] for row in rows] for name in rows[0]}, 2)
    assert batch.lengths.tolist() == [[1, 1], [1, 0], [2, 0], [2, 0]]


def test_generated_clicks_give_rows_too() -> None:
    rows = msgspec.json.decode(golden_rows_json(tiny(), []))
    assert rows == msgspec.json.decode(golden_rows_json(tiny(), []))
    assert len(rows) == 24
    encoder = FeatureEncoder(tiny())
    for row in rows:
        assert len(encoder.encode({name: [value] for name, value in row.items()}, 1)) == 1


def test_held_out_rows_go_first() -> None:
    columns = {
        "price": pa.array(range(1000)),
        "age_days": pa.array([1] * 1000),
        "user_id": pa.array(["u"] * 1000),
        "item_id": pa.array([3] * 1000),
        "item_tags": pa.array([[1]] * 1000),
    }
    chunk = Chunk(source="f", first_row=1, columns=pa.RecordBatch.from_pydict(columns))
    options = tiny().training
    _, held_out = split_rows(1000, holdout=options.holdout, seed=options.seed)
    found = [int(row["price"]) for row in pick_golden_rows([chunk], tiny())]
    assert len(found) == 24
    assert set(found) <= set(held_out.tolist())
    assert pick_golden_rows([], tiny()) == []
