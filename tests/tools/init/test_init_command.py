"""`dlrm init` writes a declaration that loads and trains as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from dlrm_factory.config import read_declaration
from dlrm_factory.errors import ConfigError, DataError
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.data.split import split_rows
from dlrm_factory.tools.init import draft_declaration
from dlrm_factory.tools.init.draft import bad_rows_bound

SAMPLES = Path(__file__).resolve().parents[3] / "../shared/data"
ROWS = 300


@pytest.fixture
def ratings(tmp_path) -> Path:
    """Rows as MovieLens writes them, with some columns that are of no use."""
    rng = np.random.default_rng(0)
    path = tmp_path / "ratings.parquet"
    table = pa.table(
        {
            "row": [f"r{i}" for i in range(ROWS)],
            "user_id": rng.integers(1, 90, ROWS),
            "rating": rng.integers(1, 6, ROWS),
            "timestamp": 968_000_000 + rng.integers(0, 10**8, ROWS),
            "genres": rng.choice(["Drama", "Drama|War", "Comedy|Drama|War"], ROWS),
            "price": np.round(rng.lognormal(3, 1.2, ROWS), 2),
            "shop": pa.array(rng.choice(["a", "b"], ROWS)),
            "currency": ["EUR"] * ROWS,
        }
    )
    pyarrow.parquet.write_table(table, path)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_declaration_loads_and_trains_as_it_is(tmp_path, ratings):
    output = tmp_path / "model.yaml"
    done = run("init", ratings, "--label", "rating >= 4", "-o", output)
    assert done.exit_code == 0, done.output
    assert "1 dense and 3 sparse features, 3 columns left out" in done.stdout
    declaration = read_declaration(output)
    assert declaration.dense_names == ["price"]
    assert declaration.sparse_names == ["user_id", "genres", "shop"]
    assert declaration.training.label == "rating >= 4"
    text = output.read_text()
    assert "#   row: every row has another value (300 different in 300 rows): nothing to learn" in text
    assert "#   currency: holds one value only: EUR" in text
    assert "# time_column: timestamp" in text
    checkpoint = tmp_path / "c.safetensors"
    done = run("train", output, "--data", ratings, "-o", checkpoint, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == ROWS
    # The commented lines work once they are taken in.
    timed = tmp_path / "timed.yaml"
    timed.write_text(text.replace("# split: time", "split: time").replace("# time_column", "time_column"))
    done = run("train", timed, "--data", ratings, "-o", checkpoint, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["held_out_rows"] == 30


def test_the_json_says_what_was_found(ratings):
    done = run("init", ratings, "--label", "rating>=4", "--json", "--rows", 200)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["all_rows"], found["output"]) == (200, False, None)
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["genres"]["distinct"] == 3
    assert columns["genres"]["distinct_is_exact"]
    assert columns["timestamp"]["role"] == "time"
    assert found["declaration"].startswith("# Drafted from the first 200 rows of ")


def test_all_rows_are_known_as_such(ratings):
    for rows, all_rows in ((ROWS - 1, False), (ROWS, True), (ROWS + 1, True), (None, True)):
        assert draft_declaration([ratings], "rating >= 4", rows=rows).all_rows == all_rows


def test_without_an_output_the_declaration_is_printed(ratings):
    done = run("init", ratings, "--label", "rating >= 4")
    assert done.stdout == draft_declaration([ratings], "rating >= 4").text


def test_a_file_is_not_replaced_unasked(tmp_path, ratings):
    output = tmp_path / "model.yaml"
    output.write_text("mine")
    done = run("init", ratings, "--label", "rating >= 4", "-o", output)
    assert isinstance(done.exception, ConfigError)
    assert output.read_text() == "mine"
    assert run("init", ratings, "--label", "rating >= 4", "-o", output, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("rating", r'"rating" holds 1, 2, 3, 4, 5, not just 0 and 1; .* --label "rating >= 3"'),
        ("shop", r'"shop" holds a, b, not just 0 and 1; write clicks as 1'),
        ("rating > 9", r'by the label "rating" no row of 300 is a click; .*--label "rating >= 3"'),
        ("ratin", r'there is no column "ratin" for the label; did you mean "rating"\?'),
    ],
)
def test_a_label_that_is_none(ratings, label, message):
    with pytest.raises(DataError, match=message):
        draft_declaration([ratings], label)


def test_cells_that_are_no_numbers_are_missing_and_rows_without_a_label_are_allowed_for(tmp_path):
    path = tmp_path / "clicks.csv"
    lines = [f"{i % 2},{i * 1.5},{'ab'[i % 2]}{i % 9}" for i in range(200)]
    lines[7], lines[9] = ",3.0,a1", "1,cheap,a1"
    path.write_text("click,price,sku\n" + "\n".join(lines) + "\n")
    draft = draft_declaration([path], "click")
    assert '1 cell is no number, such as "cheap": missing\n' in draft.text
    assert "transform: standardize, unreadable: missing}" in draft.text
    assert (
        "max_bad_rows: 0.01  # 0.500% of these rows have no label; room for data that has more\n"
        in draft.text
    )
    (tmp_path / "m.yaml").write_text(draft.text)
    done = run("train", tmp_path / "m.yaml", "--data", path, "-o", tmp_path / "c.safetensors")
    assert done.exit_code == 0, done.output
    assert "left out 1 of 200 rows" in done.stdout
    assert '1 cell of "price" cannot be read and counts as missing; the first:' in done.stdout
    assert 'row 10, column "price": "cheap" is not a number' in done.stdout


def test_words_that_mean_missing_are_drafted_and_count_for_nothing(tmp_path):
    path = tmp_path / "clicks.csv"
    lines = [f"{i % 2},{'?' if i % 3 == 0 else i * 1.5},{'ab'[i % 2]}{i % 9}" for i in range(300)]
    lines[1] = "1,NA,a1"
    path.write_text("click,price,sku\n" + "\n".join(lines) + "\n")
    draft = draft_declaration([path], "click")
    assert "missing_values: ['?', NA]}" in draft.text
    (tmp_path / "m.yaml").write_text(draft.text)
    checkpoint = tmp_path / "c.safetensors"
    done = run("train", tmp_path / "m.yaml", "--data", path, "-o", checkpoint, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["unreadable"] == []
    done = run("evaluate", checkpoint, "--data", path, "--slice", "price", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["unreadable"] == []
    slices = {each["name"]: each["models"]["DLRM"]["samples"] for each in found["slices"]["slices"]}
    _, held_out = split_rows(300, holdout=0.1, seed=1)
    assert slices["(missing)"] == sum(1 for row in held_out if row % 3 == 0 or row == 1)
    assert "?" not in slices


@pytest.mark.parametrize(
    ("share", "bound"),
    [
        (0.00001, 0.001),
        (0.0005, 0.001),
        (0.00051, 0.002),
        (0.0123, 0.05),
        (0.2, 0.5),
        (0.4, 0.7),
        (0.99, 0.99),
    ],
)
def test_rows_without_a_label_have_room_beyond_those_that_were_seen(share, bound):
    assert bad_rows_bound(share) == bound


def test_a_draft_from_all_rows_trains_on_a_part_of_them(tmp_path):
    """However many of the odd cells are in the part."""
    path, part = tmp_path / "clicks.csv", tmp_path / "part.csv"
    lines = [f"{i % 2},{f'{i}o' if i < 4 else i * 1.5},{'ab'[i % 2]}{i % 9}" for i in range(300)]
    path.write_text("click,price,sku\n" + "\n".join(lines) + "\n")
    part.write_text("click,price,sku\n" + "\n".join(lines[:60]) + "\n")
    draft = draft_declaration([path], "click")
    assert '4 cells are no numbers, such as "0o": missing\n' in draft.text
    assert "max_bad_rows" not in draft.text
    (tmp_path / "m.yaml").write_text(draft.text)
    checkpoint = tmp_path / "c.safetensors"
    done = run("train", tmp_path / "m.yaml", "--data", part, "-o", checkpoint, "--json")
    assert done.exit_code == 0, done.output
    (cells,) = json.loads(done.stdout)["unreadable"]
    assert (cells["feature"], cells["cells"]) == ("price", 4)
    done = run("evaluate", checkpoint, "--data", part, "--all-rows", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["unreadable"] == [{"feature": "price", "cells": 4}]


def test_codes_are_taken_as_a_number_if_there_is_no_other(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("click,stars,sku\n" + "".join(f"{i % 2},{i % 5},s{i % 9}\n" for i in range(100)))
    draft = draft_declaration([path], "click")
    assert [(role.column, role.kind) for role in draft.roles] == [("stars", "dense"), ("sku", "sparse")]
    assert "taken as a number, as a DLRM needs one" in draft.text


def test_ids_are_taken_as_a_number_only_if_there_are_no_other_codes(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("click,user_id,stars\n" + "".join(f"{i % 2},{i % 40 + 1},{i % 5}\n" for i in range(100)))
    draft = draft_declaration([path], "click")
    assert [(role.column, role.kind) for role in draft.roles] == [("user_id", "sparse"), ("stars", "dense")]


def test_data_without_a_number_or_without_ids_is_refused(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("click,sku\n" + "".join(f"{i % 2},s{i % 9}\n" for i in range(100)))
    with pytest.raises(DataError, match="no column can be taken as a number"):
        draft_declaration([path], "click")
    path.write_text("click,price\n" + "".join(f"{i % 2},{i * 1.5}\n" for i in range(100)))
    with pytest.raises(DataError, match="no column can be taken as ids"):
        draft_declaration([path], "click")
    path.write_text("click,price\n")
    with pytest.raises(DataError, match="there are no rows"):
        draft_declaration([path], "click")


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not here")
@pytest.mark.parametrize(
    ("name", "label", "dense"),
    [
        ("movielens_sample.csv", "rating >= 4", ["age"]),
        ("criteo_sample.csv", "label", [f"I{i}" for i in range(1, 14)]),
    ],
)
def test_real_rows(tmp_path, name, label, dense):
    output = tmp_path / "model.yaml"
    assert run("init", SAMPLES / name, "--label", label, "-o", output).exit_code == 0
    assert read_declaration(output).dense_names == dense
    done = run("train", output, "--data", SAMPLES / name, "-o", tmp_path / "c.safetensors")
    assert done.exit_code == 0, done.output
