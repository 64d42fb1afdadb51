from __future__ import annotations

import msgspec
import pytest

from dlrm_factory.config import tiny
from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.label import parse_label


@pytest.mark.parametrize(
    ("text", "column", "number", "click", "other"),
    [
        ("rating >= 4", "rating", 4.0, 4, 3.9),
        ("rating>=4", "rating", 4.0, 5, 3),
        ("a b <= -1.5e1", "a b", -15.0, -15, 0),
        ("x==0", "x", 0.0, 0, 1),
        ("x != .5", "x", 0.5, 1, 0.5),
        ("x>1", "x", 1.0, 2, 1),
        ("x < 1", "x", 1.0, 0, 1),
    ],
)
def test_a_comparison(text, column, number, click, other):
    label = parse_label(text)
    assert label.column == column
    assert label.comparison is not None
    assert label.comparison.number == number
    assert label.comparison(click)
    assert not label.comparison(other)
    assert label.comparison(label.comparison.example(True))
    assert not label.comparison(label.comparison.example(False))


@pytest.mark.parametrize("text", ["click", "rating >= x", ">= 4", "is click?", "a=4"])
def test_anything_else_is_a_column(text):
    assert parse_label(text).column == text
    assert parse_label(text).comparison is None


def test_the_column_of_a_comparison_is_no_feature_and_not_the_time():
    def with_training(**options):
        declaration = tiny()
        training = msgspec.structs.replace(declaration.training, **options)
        return problems_of(msgspec.structs.replace(declaration, training=training))

    assert with_training(label="rating >= 4") == []
    (problem,) = with_training(label="price > 2")
    assert '"price" is also a feature' in problem
    (problem,) = with_training(label="rating >= 4", split="time", time_column="rating")
    assert '$.training.time_column: "rating" is the label' in problem
