"""Tables are imported and archived a block at a time, however large they are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.batches import random_state
from support.peak_memory import peak_memory

from dlrm_factory.config import tiny
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.tools.importing import import_weights
from dlrm_factory.weights.checkpoint import open_checkpoint
from dlrm_factory.weights.table_file import TableFile, write_table_file

DIM, ROWS = 64, 262_144
TABLE = 4 * DIM * ROWS  # 64 MiB
KEY = table_weight_key("t_user_id")
BOUND = TABLE * 3 // 4


def declaration() -> DLRMDeclaration:
    tables = [msgspec.structs.replace(table, embedding_dim=DIM, dtype="int8") for table in tiny().tables]
    tables[0] = msgspec.structs.replace(tables[0], num_embeddings=ROWS)
    return msgspec.structs.replace(tiny(), tables=tables, dense_arch_layer_sizes=[8, DIM])


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(declaration())


@pytest.fixture(scope="module")
def warm(state, tmp_path_factory) -> Path:
    """Checkpoint of the state, imported once: what is loaded on the way is loaded."""
    folder = tmp_path_factory.mktemp("warm")
    save_file(state, folder / "w.safetensors")
    import_weights([folder / "w.safetensors"], declaration(), folder / "c.safetensors")
    return folder / "c.safetensors"


def saved(kind: str, state: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    if kind == "safetensors":
        save_file(state, folder / "w.safetensors")
        return [folder / "w.safetensors"]
    if kind == "half":  # put together in a scratch file
        state = {key: value.half() for key, value in state.items()}
    if kind == "replicas":  # compared with one another
        torch.save(state, folder / "rank1.pt")
    torch.save(state, folder / "rank0.pt")
    return sorted(folder.glob("rank*.pt"))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "half", "replicas"])
def test_pages_of_a_large_table_are_given_back(kind, state, warm, tmp_path):
    paths = saved(kind, state, tmp_path)
    with peak_memory() as peak:
        import_weights(paths, declaration(), tmp_path / "c.safetensors")
    assert peak.growth < BOUND
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        expected = state[KEY].half().float() if kind == "half" else state[KEY]
        assert torch.equal(file.get_tensor(KEY), expected)


def test_one_weight_under_two_names_is_copied_a_block_at_a_time(state, warm, tmp_path):
    """torch.save keeps the memory of a tensor once; a checkpoint holds two."""
    tables = [msgspec.structs.replace(table, num_embeddings=ROWS) for table in declaration().tables[:2]]
    tied = msgspec.structs.replace(declaration(), tables=[*tables, declaration().tables[2]])
    other = table_weight_key("t_item_id")
    torch.save({**state, other: state[KEY]}, tmp_path / "w.pt")
    with peak_memory() as peak:
        import_weights([tmp_path / "w.pt"], tied, tmp_path / "c.safetensors")
    assert peak.growth < BOUND
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor(other), state[KEY])


def test_a_table_is_encoded_and_checked_a_block_at_a_time(warm, tmp_path):
    """int8 rows are a quarter of the floats."""
    checkpoint = open_checkpoint(warm)
    with peak_memory() as peak:
        write_table_file(tmp_path / "t.bin", declaration(), checkpoint)
        TableFile(tmp_path / "t.bin").verify(release=True)
    assert peak.growth < TABLE // 4
