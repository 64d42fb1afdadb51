"""Byte sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512B", 512),
        ("80GB", 80_000_000_000),
        ("24GiB", 24 * 1024**3),
        ("1.5 kb", 1500),
        (" 2 MiB ", 2 * 1024**2),
        ("3TB", 3_000_000_000_000),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "0GB", "-1GB", "1 XB", "1.GB", "1 I", "80G", "nan", "0.1B", "9" * 400]
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write a number and a unit"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (12_100_000_000, "12.1 GB"),
        (2_500_000_000_000, "2.5 TB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(1000, 10**15))
def test_a_written_size_reads_back_within_its_rounding(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.06)


@given(st.text(max_size=12))
def test_any_text_is_a_positive_size_or_a_value_error(text: str) -> None:
    try:
        size = parse_bytes(text)
    except ValueError:
        return
    assert size >= 1
