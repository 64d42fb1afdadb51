from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.batches import random_state
from support.sharding import declared

from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.model.dtypes import decode_rows, encode_rows, row_bytes
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.weights.rows import StateDictRows
from dlrm_factory.weights.table_file import TableFile, create_table_file, write_table_file


@pytest.fixture
def written(tmp_path):
    declaration = declared("auto", "sum", ("int8", "fp16", "int4"))
    state = random_state(declaration)
    path = tmp_path / "tables.bin"
    write_table_file(path, declaration, StateDictRows(declaration, state))
    return path, declaration, state


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 64), ("fp16", 32), ("int8", 20), ("int4", 12)])
def test_row_bytes(dtype, size):
    assert row_bytes(dtype, 16) == size
    assert encode_rows(torch.zeros(3, 16), dtype).shape == (3, size)


def test_an_int8_row_by_hand():
    # 256 levels over [0, 255]: scale 1, bias 0, and the values themselves.
    row = torch.tensor([[0.0, 1.0, 2.0, 255.0]])
    encoded = encode_rows(row, "int8")
    assert encoded[0, :4].view(torch.float16).tolist() == [1.0, 0.0]
    assert encoded[0, 4:].tolist() == [0, 1, 2, 255]
    assert torch.equal(decode_rows(encoded, "int8"), row)


def test_rows_are_read_back_as_encoded(written):
    path, declaration, state = written
    file = TableFile(path)
    file.check(declaration)
    file.verify()
    for table in declaration.tables:
        expected = encode_rows(state[table_weight_key(table.name)], table.dtype)
        assert torch.equal(file.rows(table.name), expected)
        assert file.tables[table.name].offset % 64 == 0


def test_progress_ends_at_the_total(tmp_path):
    declaration = tiny()
    calls = []
    source = StateDictRows(declaration, random_state(declaration))
    write_table_file(tmp_path / "t.bin", declaration, source, progress=lambda *call: calls.append(call))
    total = sum(table.num_embeddings * 32 for table in declaration.tables)
    assert calls[-1] == (total, total)


def damage(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_flipped_bit_in_a_row_is_found_by_verify(written):
    path, _, _ = written
    file = TableFile(path)
    offset = file.tables["t_item_id"].offset + 7
    byte = int(file.bytes[offset])
    damage(path, offset, bytes([byte ^ 1]))
    with pytest.raises(WeightsError, match='table "t_item_id" is damaged'):
        TableFile(path).verify()


@pytest.mark.parametrize("offset", [9, 17, 30])
def test_a_damaged_header_is_refused(written, offset):
    path, _, _ = written
    damage(path, offset, b"\xff")
    with pytest.raises(WeightsError, match="header"):
        TableFile(path)


def test_a_truncated_file_is_refused(written):
    path, _, _ = written
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="cut short"):
        TableFile(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a table file at all"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "tables.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is not a table file"):
        TableFile(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no such table file"):
        TableFile(tmp_path / "tables.bin")


def test_another_declaration_is_refused(written):
    path, _, _ = written
    with pytest.raises(WeightsError, match='table "t_user_id" has dtype int8 but fp32 is declared'):
        TableFile(path).check(tiny())


def test_a_sparse_file_takes_no_room(tmp_path):
    from dlrm_factory.config import criteo

    path = tmp_path / "tables.bin"
    stored = create_table_file(path, criteo().tables)
    assert path.stat().st_size > 12_000_000_000
    assert path.stat().st_blocks * 512 < 1_000_000
    assert stored["t_C1"].num_embeddings == 45_833_188


def test_state_dict_rows_names_what_is_wrong():
    declaration = tiny()
    state = random_state(declaration)
    key = table_weight_key("t_item_id")
    with pytest.raises(WeightsError, match=r"declared \(200, 8\)"):
        StateDictRows(declaration, {**state, key: torch.zeros(3, 8)})
    del state[key]
    with pytest.raises(WeightsError, match=r'has no ".*t_item_id.weight"'):
        StateDictRows(declaration, state)


def kernel_flags(path: Path) -> set[str]:
    """Kernel's notes on this process's mapping of ``path``."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return set(next(line for line in lines[start:] if line.startswith("VmFlags:")).split()[1:])


@pytest.mark.parametrize(("memory_share", "alone"), [(4.0, False), (1.4, False), (1.2, True), (0.1, True)])
def test_rows_of_a_file_that_memory_does_not_hold_are_read_alone(written, memory_share, alone):
    path, _, _ = written
    file = TableFile(path)
    file.prepare_lookups(int(memory_share * path.stat().st_size))
    assert ("rr" in kernel_flags(path)) == alone  # random reads
    file.verify()


def test_a_part_of_the_file_that_memory_holds_is_read_with_its_neighbours(written):
    path, _, _ = written
    file = TableFile(path)
    file.held //= 2  # as for a host of two
    file.prepare_lookups(int(1.2 * path.stat().st_size))
    assert "rr" not in kernel_flags(path)
    file.prepare_lookups(int(0.5 * path.stat().st_size))
    assert "rr" in kernel_flags(path)
