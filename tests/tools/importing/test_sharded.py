"""Models that real ranks saved, shard by shard, become the weights they were."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.batches import random_state
from support.sharded_files import MODELS

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing import import_weights

pytestmark = pytest.mark.multiprocess


def assert_imported(paths, name, tmp_path):
    declaration, _ = MODELS[name]
    output = tmp_path / "imported.safetensors"
    report = import_weights(paths, declaration, output)
    found, expected = load_file(output), random_state(declaration)
    assert set(found) == set(expected)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert [path.name for path in tmp_path.iterdir()] == ["imported.safetensors"]  # nothing left on the way
    return report


@pytest.mark.parametrize("name", MODELS)
def test_the_files_of_all_ranks(name, sharded, tmp_path):
    folder, ranks = sharded
    assert_imported([folder / f"{name}.rank{rank}.pt" for rank in range(ranks)], name, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_folder(name, sharded, tmp_path):
    report = assert_imported([sharded[0] / f"{name}.dcp"], name, tmp_path)
    assert report.source == "torch.distributed.checkpoint folder"


def test_a_folder_of_sharded_safetensors(sharded, tmp_path):
    assert_imported([sharded[0] / "dtensor_row_wise.safetensors"], "dtensor_row_wise", tmp_path)


def test_a_folder_of_rank_files(sharded, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for path in sharded[0].glob("mixed.rank*.pt"):
        shutil.copy(path, folder)
    output = tmp_path / "out"
    output.mkdir()
    assert_imported([folder], "mixed", output)


@pytest.mark.parametrize("name", ["mixed", "dtensor_row_wise"])
def test_a_missing_shard_names_the_rows(name, sharded, tmp_path):
    """Rank 0's file alone: of two ranks it has the first 500 rows, of one it has all."""
    folder, ranks = sharded
    paths = [folder / f"{name}.rank0.pt"]
    if ranks == 1:
        assert_imported(paths, name, tmp_path)
        return
    with pytest.raises(
        WeightsError,
        match=r"t_user_id.weight: rows 500 to 999 are missing from .*rank0.pt; give the files of all",
    ):
        import_weights(paths, MODELS[name][0], tmp_path / "c.safetensors")


def test_one_rank_given_twice_is_an_overlap(sharded, tmp_path):
    folder, ranks = sharded
    paths = [folder / "mixed.rank0.pt", folder / f"mixed.rank{ranks - 1}.pt", folder / "mixed.rank0.pt"]
    with pytest.raises(
        WeightsError, match=r"t_item_id.weight: rows 0 to 199 are there twice, again in .*rank0"
    ):
        import_weights(paths, MODELS["mixed"][0], tmp_path / "c.safetensors")


def test_a_checkpoint_folder_without_one_of_its_files(sharded, tmp_path):
    folder = tmp_path / "saved"
    shutil.copytree(sharded[0] / "mixed.dcp", folder)
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(WeightsError, match=r"__0_0.distcp: is missing; .* lies in it"):
        import_weights([folder], MODELS["mixed"][0], tmp_path / "c.safetensors")


def test_a_rank_of_another_model(sharded, tmp_path):
    folder, _ = sharded
    other = tmp_path / "other.pt"
    torch.save({"over_arch.model.1.bias": torch.tensor([7.0])}, other)
    with pytest.raises(WeightsError, match=r"over_arch.model.1.bias: differs between"):
        import_weights([folder / "mixed.rank0.pt", other], MODELS["mixed"][0], tmp_path / "c.safetensors")
