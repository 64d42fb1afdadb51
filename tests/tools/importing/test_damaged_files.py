"""Files that were cut short, or in which bits have flipped: a WeightsError or the weights, and never anything else."""

from __future__ import annotations

import random
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.batches import random_state
from support.depth import examples
from support.sharded_files import save_folder

from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing import import_weights

ROUNDS = examples(60)


@pytest.fixture(scope="module")
def good(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("good")
    state = random_state(tiny())
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    save_folder(state, folder / "dcp")
    return folder


def attempt(paths, tmp_path):
    """Test whether it was imported."""
    try:
        import_weights(paths, tiny(), tmp_path / "c.safetensors")
    except WeightsError:
        return False
    return True


def flipped(data, source, *, most):
    """Some bits of the first ``most`` bytes, where a file says what it is, or of all."""
    damaged = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(min(most, len(data)) if source.random() < 0.7 else len(data))
        damaged[place] ^= 1 << source.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("name", ["zip.pt", "old.pt", "plain.safetensors"])
def test_files(name, good, tmp_path):
    data, source = (good / name).read_bytes(), random.Random(name)
    path = tmp_path / name
    for _ in range(ROUNDS):
        path.write_bytes(flipped(data, source, most=4000))
        attempt([path], tmp_path)
    for _ in range(ROUNDS // 2):
        path.write_bytes(data[: source.randrange(len(data))])
        assert not attempt([path], tmp_path)


def test_checkpoint_folders(good, tmp_path):
    source = random.Random("dcp")
    folder = tmp_path / "dcp"
    shutil.copytree(good / "dcp", folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for round_ in range(2 * ROUNDS):
        for path, data in files.items():
            path.write_bytes(data)
        path = folder / ".metadata" if round_ % 2 else next(folder.glob("*.distcp"))
        path.write_bytes(flipped(files[path], source, most=len(files[path])))
        attempt([folder], tmp_path)
        path.write_bytes(files[path][: source.randrange(len(files[path]))])
        assert not attempt([folder], tmp_path)


def test_rank_files_with_shards(sharded, tmp_path):
    folder, ranks = sharded
    source = random.Random("ranks")
    paths = [tmp_path / f"rank{rank}.pt" for rank in range(ranks)]
    originals = [folder / f"dtensor_row_wise.rank{rank}.pt" for rank in range(ranks)]
    for path, original in zip(paths, originals, strict=True):
        shutil.copy(original, path)
    data = originals[0].read_bytes()
    for _ in range(ROUNDS):
        paths[0].write_bytes(flipped(data, source, most=5000))
        attempt(paths, tmp_path)
