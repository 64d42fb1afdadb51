"""Labels that come later, joined by the id of the request."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from dlrm_factory.errors import DataError
from dlrm_factory.requests.request import Request
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.monitoring.exporter import Exporter
from dlrm_factory.tools.monitoring.labels import join_labels


def named(name, *prices):
    rows = [{"price": price, "item": 1} for price in prices]
    return Request(json.dumps({"instances": rows}).encode(), id=name)


@pytest.fixture
def temporary(work):
    """Probabilities 0.5 and 0.5 of r1, 0.8 of r2, 0.2 of r3."""
    return work([named("r1", 0.0, 0.0), named("r2", math.log(4)), named("r3", -math.log(4))])


def write(folder, text):
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_calibration_and_normalized_entropy_by_hand(temporary, tmp_path):
    labels = write(tmp_path, "request_id,label,index\nr1,1,0\nr1,0,1\nr2,1,0\nr3,0,0\nr9,1,0\n")
    joined = join_labels(labels, temporary=temporary)
    assert (joined.labels, joined.unmatched) == (5, 1)
    (found,) = joined.versions
    figures = found.figures
    assert (found.model, found.version, figures.joined) == ("shop", "1.0", 4)
    assert figures.calibration == pytest.approx((0.5 + 0.5 + 0.8 + 0.2) / 2)
    loss = -(2 * math.log(0.5) + 2 * math.log(0.8)) / 4
    assert figures.normalized_entropy == pytest.approx(loss / math.log(2))
    text = Exporter(temporary).text()
    assert 'dlrm_calibration_ratio{model="shop",version="1.0"} 1.0' in text
    assert 'dlrm_labels_joined{model="shop",version="1.0"} 4.0' in text


def test_without_a_column_index_the_first_sample_is_meant(temporary, tmp_path):
    (found,) = join_labels(write(tmp_path, "request_id,label\nr2,1\n"), temporary=temporary).versions
    assert found.figures.score_sum == pytest.approx(0.8)
    assert found.figures.normalized_entropy is None  # all labels are equal


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_other_files(temporary, tmp_path, kind):
    path = tmp_path / f"labels.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(pa.table({"request_id": ["r2", "r3"], "label": [True, False]}), path)
    else:
        path.write_text('{"request_id": "r2", "label": 1}\n{"request_id": "r3", "label": 0}\n')
    (found,) = join_labels(path, temporary=temporary).versions
    assert (found.figures.joined, found.figures.label_sum) == (2, 1)


def test_of_a_request_that_came_twice_the_latest_score_counts(work, tmp_path):
    temporary = work([named("r1", 0.0), named("r1", math.log(4))])
    (found,) = join_labels(write(tmp_path, "request_id,label\nr1,1\n"), temporary=temporary).versions
    assert found.figures.score_sum == pytest.approx(0.8)


def test_each_version_is_told_apart(work, tmp_path):
    work([named("r1", 0.0)])
    temporary = work([named("r2", math.log(4))], version="2.0", pid=4_000_000)
    joined = join_labels(write(tmp_path, "request_id,label\nr1,1\nr2,1\n"), temporary=temporary)
    assert {(each.version, round(each.figures.score_sum, 6)) for each in joined.versions} == {
        ("1.0", 0.5),
        ("2.0", 0.8),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("request_id,clicked\nr1,1\n", "has no column label"),
        ("request_id,label\nr1,\n", "row 1 has no label"),
        ("request_id,label\nr1,0.5\n", "row 1: label 0.5 is neither 0 nor 1"),
        ("request_id,label\nr1,yes\n", "column label: "),
        ("request_id,label,index\nr1,1,-1\n", "row 1: index -1 is no place"),
        ("", "cannot be read"),
    ],
)
def test_mistakes_are_told(temporary, tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        join_labels(write(tmp_path, text), temporary=temporary)


def test_the_command_tells_what_it_found(temporary, tmp_path):
    labels = write(tmp_path, "request_id,label,index\nr1,1,0\nr3,0,0\nr9,1,0\n")
    done = CliRunner().invoke(app, ["labels", str(labels), "--temporary", str(temporary)])
    assert done.exit_code == 0, done.output
    assert "shop 1.0: 2 labels, mean 0.5000, calibration 0.7000" in done.stdout
    assert "1 of 3 labels have no score" in done.stderr
    done = CliRunner().invoke(app, ["labels", str(labels), "--temporary", str(temporary), "--json"])
    assert json.loads(done.stdout)["versions"][0]["calibration"] == pytest.approx(0.7)
    nobody = write(tmp_path, "request_id,label\nr9,1\n")
    done = CliRunner().invoke(app, ["labels", str(nobody), "--temporary", str(temporary)])
    assert "none of 1 labels is of a request that was scored" in str(done.exception)
