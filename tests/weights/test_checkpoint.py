from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support.batches import random_state

from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    declaration, path = tiny(), tmp_path / "deep" / "c.safetensors"
    state = random_state(declaration)
    save_checkpoint(path, declaration, state, {"auc": "0.75"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.declaration == declaration
    assert checkpoint.metadata == {"auc": "0.75"}
    assert torch.equal(checkpoint.table_rows("t_item_id", 3, 9), state[table_weight_key("t_item_id")][3:9])
    dense = checkpoint.dense_state()
    assert all(torch.equal(dense[key], state[key]) for key in dense)
    assert set(dense) == {key for key in state if ".embedding_bags." not in key}
    assert [file.name for file in path.parent.iterdir()] == ["c.safetensors"]


def test_equal_checkpoints_are_equal_files(tmp_path):
    for name in ("a", "b"):
        metadata = {"auc": "0.75", "rows": "12", "loss": "0.5"}
        save_checkpoint(tmp_path / name, tiny(), random_state(tiny()), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_wrong_weights_are_listed_by_name(tmp_path):
    declaration = tiny()
    state = random_state(declaration)
    state["stranger"] = torch.zeros(1)
    state[table_weight_key("t_item_id")] = torch.zeros(2, 8)
    del state["over_arch.model.1.bias"]
    with pytest.raises(WeightsError) as error:
        save_checkpoint(tmp_path / "c.safetensors", declaration, state)
    for part in (
        "missing: over_arch.model.1.bias (1,)",
        "not of this model: stranger",
        "declaration says (200, 8)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage" * 10, b"\xff" * 64])
def test_no_checkpoint_at_all(tmp_path, content):
    path = tmp_path / "c.safetensors"
    with pytest.raises(WeightsError, match="no such checkpoint"):
        open_checkpoint(path)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors checkpoint"):
        open_checkpoint(path)


def test_a_checkpoint_without_declaration(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="no declaration"):
        open_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_a_float_model_gives_back_its_weights(sharding):
    from support.sharding import DTYPES, declared

    declaration = declared(sharding, "sum", DTYPES[0])
    state = random_state(declaration)
    found = DLRMFactory(declaration).build(mode="float", weights=state).state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
