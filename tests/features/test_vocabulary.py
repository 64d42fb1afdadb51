"""Ids → rows through a vocabulary: every id gets its own row, whatever the hashes, from a file or from memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.depth import examples
from support.raw_features import canonical

from dlrm_factory.config import DLRMDeclaration, SparseFeature, Table
from dlrm_factory.errors import WeightsError
from dlrm_factory.features import Vocabularies, build_vocabularies, hash_keys, vocabulary, vocabulary_building

ANY_INT = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ID = st.one_of(ANY_INT, st.integers(-3, 30), TEXT, st.integers(-3, 30).map(str))


def rows_in(vocabularies: Vocabularies, table: int, ids: Any) -> list[int]:
    return vocabularies.rows(ids, np.full(len(ids), table)).tolist()


DISTINCT = st.lists(ID, unique_by=canonical, max_size=25)


@settings(max_examples=examples(150))
@given(DISTINCT, DISTINCT, st.lists(ID, max_size=15))
def test_each_id_has_its_row_in_its_own_table(first: list, second: list, others: list) -> None:
    vocabularies = build_vocabularies({"t_first": first, "t_second": second})
    assert vocabularies.sizes == {"t_first": len(first), "t_second": len(second)}
    for table, ids in enumerate((first, second)):
        assert rows_in(vocabularies, table, ids) == list(range(len(ids)))
        where = {canonical(raw): row for row, raw in enumerate(ids)}
        assert rows_in(vocabularies, table, others) == [where.get(canonical(raw), -1) for raw in others]
        integers = [raw for raw in others if isinstance(raw, int)]
        as_array = rows_in(vocabularies, table, np.array(integers, dtype=np.int64))
        assert as_array == [where.get(raw, -1) for raw in integers]


def test_an_integer_with_the_hash_of_a_text_is_another_id() -> None:
    text = "user_17"
    twin = int(_unmix(hash_keys([text]))[0])
    assert hash_keys([twin]) == hash_keys([text])
    both = build_vocabularies({"t": [text, twin]})
    assert rows_in(both, 0, [twin, text, twin]) == [1, 0, 1]
    for known, unknown in ((text, twin), (twin, text)):
        alone = build_vocabularies({"t": [known]})
        assert rows_in(alone, 0, [known, unknown]) == [0, -1]
    assert rows_in(build_vocabularies({"t": np.array([twin])}), 0, [text]) == [-1]


def _unmix(hashes: np.ndarray) -> np.ndarray:
    """The integers with these hashes: SplitMix64's finaliser backwards."""
    with np.errstate(over="ignore"):
        z = hashes ^ (hashes >> np.uint64(31)) ^ (hashes >> np.uint64(62))
        z = z * np.uint64(0x319642B2D24D8EC3)
        z = z ^ (z >> np.uint64(27)) ^ (z >> np.uint64(54))
        z = z * np.uint64(0x96DE1B173F119089)
        z = z ^ (z >> np.uint64(30)) ^ (z >> np.uint64(60))
        return (z - np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def test_texts_that_all_collide_keep_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_hash(ids: Any) -> np.ndarray:
        return np.full(len(ids), 5, dtype=np.uint64)

    monkeypatch.setattr(vocabulary, "hash_keys", one_hash)
    monkeypatch.setattr(vocabulary_building, "hash_keys", one_hash)
    words = ["", "a", "b", "aa", "ab", "ba", "é", "x" * 300]
    vocabularies = build_vocabularies({"t": words})
    asked = ["c", *words, "ac", "x" * 299]
    assert rows_in(vocabularies, 0, asked) == [-1, *range(len(words)), -1, -1]


@pytest.mark.parametrize("ids", [["a", "b", "a"], [17, "17"], [3, 4, 3]])
def test_an_id_given_twice_is_refused(ids: list) -> None:
    with pytest.raises(ValueError, match="twice"):
        build_vocabularies({"t_other": [1], "t": ids})


def test_ids_beyond_2_to_53_stay_apart() -> None:
    ids = [2**53, 2**53 + 1, -(2**63), 2**63 - 1, str(2**63)]
    assert rows_in(build_vocabularies({"t": ids}), 0, ids) == [0, 1, 2, 3, 4]


def test_what_is_no_id_raises() -> None:
    vocabularies = build_vocabularies({"t": [1]})
    with pytest.raises(OverflowError):
        rows_in(vocabularies, 0, [2**63])
    with pytest.raises(UnicodeEncodeError):
        rows_in(vocabularies, 0, ["\ud800"])


def test_equal_vocabularies_are_equal_bytes() -> None:
    ids = {"t": ["b", 3, "a"], "u": np.arange(50)}
    assert bytes(build_vocabularies(ids).data) == bytes(build_vocabularies(ids).data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vocabularies.bin"
    path.write_bytes(build_vocabularies({"t": ["a", 7, "b"], "u": [1, 2]}).data)
    return path


def test_a_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "vocabularies.bin"
    ids = np.arange(300_000, dtype=np.int64) * 977
    path.write_bytes(build_vocabularies({"t": ids}).data)
    vocabularies = Vocabularies.map(path)
    assert (rows_in(vocabularies, 0, ids) == np.arange(len(ids))).all()
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    sizes = dict(line.split(":") for line in lines[start + 1 : start + 20] if line.endswith(" kB"))
    assert int(sizes["Anonymous"].split()[0]) == 0
    assert path.stat().st_size < 2 * ids.nbytes


def test_any_damaged_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    begins = whole.index(b"}", whole.index(b"xxh3"))
    for at in [0, 9, 17, 30, begins, *range((begins // 64 + 1) * 64, len(whole), 13)]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        with pytest.raises(WeightsError):
            Vocabularies(bytes(damaged))


@pytest.mark.parametrize("content", [b"", b"DLRMVOC1", b"x" * 500])
def test_another_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="vocabulary file"):
        Vocabularies.map(path)


def test_a_file_cut_short_or_missing_is_named(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(WeightsError, match="cut short"):
        Vocabularies.map(path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"vocabularies\.bin: there is no such vocabulary file"):
        Vocabularies.map(path)


def declared(rows: int) -> DLRMDeclaration:
    from dlrm_factory.config import tiny

    features = [SparseFeature(name="f", table="t", ids="vocabulary", out_of_vocabulary=2)]
    tables = [Table(name="t", num_embeddings=rows, embedding_dim=8)]
    base = tiny()
    return DLRMDeclaration(
        dense_arch_layer_sizes=base.dense_arch_layer_sizes,
        over_arch_layer_sizes=base.over_arch_layer_sizes,
        dense_features=base.dense_features,
        sparse_features=features,
        tables=tables,
    )


def test_a_vocabulary_must_be_the_tables_and_fit() -> None:
    build_vocabularies({"t": [1, 2, 3]}).check(declared(5))
    with pytest.raises(WeightsError, match='"t" has rows for 2 ids, but the vocabulary has 3'):
        build_vocabularies({"t": [1, 2, 3]}).check(declared(4))
    with pytest.raises(WeightsError, match="has vocabularies of u, but t declared"):
        build_vocabularies({"u": [1]}).check(declared(4))
