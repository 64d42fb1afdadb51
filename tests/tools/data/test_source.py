"""Files of held-out rows, folders, limits, labels that are compared, and models that are trained already."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.raw_features import raw_declaration

from dlrm_factory.config import tiny
from dlrm_factory.errors import DataError
from dlrm_factory.tools.data import source as source_module
from dlrm_factory.tools.data.source import generate_clicks, read_clicks
from dlrm_factory.tools.data.split import first_rows, split_rows


def read(declaration, paths, **options):
    return read_clicks(declaration, paths, **({"rows": None, "observe": lambda _: None} | options))


def lines(first: int, count: int) -> list[str]:
    return [f"{i % 2},{i},1,u{i},3,4" for i in range(first, first + count)]


def test_given_files_are_held_out_and_all_others_train(write_csv):
    training, held_out = write_csv(*lines(0, 30)), write_csv(*lines(100, 5), name="later.csv")
    clicks = read(tiny(), [training], held_out=[held_out], rows=20)
    assert clicks.dataset.dense[clicks.training, 0].tolist() == list(range(20))
    assert clicks.dataset.dense[clicks.held_out, 0].tolist() == list(range(100, 105))


def test_held_out_files_alone(write_csv):
    clicks = read(tiny(), [], held_out=[write_csv(*lines(0, 5))])
    assert (len(clicks.training), len(clicks.held_out)) == (0, 5)


def test_held_out_files_are_not_fitted(write_csv):
    declaration = msgspec.structs.replace(
        tiny(),
        dense_features=[msgspec.structs.replace(f, transform="standardize") for f in tiny().dense_features],
    )
    clicks = read(declaration, [write_csv(*lines(0, 10))], held_out=[write_csv(*lines(500, 9), name="h.csv")])
    assert clicks.features.declaration.dense_features[0].mean == pytest.approx(4.5)


def test_a_file_on_both_sides_is_refused(write_csv):
    path = write_csv(*lines(0, 5))
    with pytest.raises(DataError, match="is given both to train on and to hold out"):
        read(tiny(), [path], held_out=[path])


def test_a_folder_is_read_like_its_files(tmp_path, write_csv):
    (tmp_path / "data").mkdir()
    paths = [write_csv(*lines(10 * i, 10), name=f"data/part-{i}.csv") for i in (2, 10)]
    write_csv("broken", name="data/_log.csv")
    folder, files = read(tiny(), [tmp_path / "data"]), read(tiny(), paths)
    assert folder.dataset.dense.tolist() == files.dataset.dense.tolist()
    assert (
        folder.held_out.tolist() == files.held_out.tolist() == split_rows(20, holdout=0.1, seed=1)[1].tolist()
    )


def test_rows_beyond_the_limit_are_not_looked_at(write_csv):
    path = write_csv(*lines(0, 10), "broken,,,,,")
    assert len(read(tiny(), [path], rows=10).dataset) == 10
    with pytest.raises(DataError, match="row 11"):
        read(tiny(), [path], rows=11)


def test_no_chunk_is_read_beyond_the_limit(write_csv):
    from dlrm_factory.tools.data.files import read_chunks

    chunks = list(read_chunks([write_csv(*lines(0, 10))], tiny()))

    def endless():
        while True:
            yield chunks[0]

    assert sum(chunk.columns.num_rows for chunk in first_rows(endless(), 25)) == 25
    assert [chunk.columns.num_rows for chunk in first_rows(endless(), 10)] == [10]


@pytest.mark.parametrize("ratings", ["int", "text"])
def test_a_label_may_be_a_comparison(write_csv, write_parquet, ratings):
    declaration = msgspec.structs.replace(
        tiny(), training=msgspec.structs.replace(tiny().training, label="rating >= 4")
    )
    if ratings == "int":
        path = write_parquet(rating=[4, 3])
    else:
        header = "rating,price,age_days,user_id,item_id,item_tags"
        path = write_csv("4.0,1,1,u,3,4", "3.5,1,1,u,3,4", header=header)
    clicks = read(declaration, [path])
    assert clicks.dataset.labels[:, 0].tolist() == [1, 0]
    missing = write_csv(",1,1,u,3,4", header="rating,price,age_days,user_id,item_id,item_tags", name="m.csv")
    with pytest.raises(DataError, match='column "rating": the label is nothing; it must be a number'):
        read(declaration, [missing])


def test_generated_clicks_suit_a_comparison(tmp_path):
    def with_label(label):
        return msgspec.structs.replace(tiny(), training=msgspec.structs.replace(tiny().training, label=label))

    plain = generate_clicks(tiny(), rows=50, write_to=None, observe=lambda _: None)
    path = tmp_path / "clicks.csv"
    compared = generate_clicks(with_label("rating < 2"), rows=50, write_to=path, observe=lambda _: None)
    assert compared.dataset.labels.tolist() == plain.dataset.labels.tolist()
    assert read(with_label("rating < 2"), [path]).dataset.labels.tolist() == plain.dataset.labels.tolist()


def test_nothing_is_fitted_for_a_trained_model(tmp_path, monkeypatch):
    path = tmp_path / "clicks.parquet"
    declaration = raw_declaration(fitted=False)
    made = generate_clicks(declaration, rows=500, write_to=path, observe=lambda _: None)

    def never(*_, **__):
        raise AssertionError("something was fitted")

    monkeypatch.setattr(source_module, "fit_features", never)
    features = made.features
    again = read(features.declaration, [path], vocabularies=features.vocabularies)
    assert again.features == features
    assert again.dataset.dense.tobytes() == made.dataset.dense.tobytes()
    rows = np.arange(500)
    assert again.dataset.features(rows).values.tolist() == made.dataset.features(rows).values.tolist()
