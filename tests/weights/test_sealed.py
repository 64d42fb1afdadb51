from __future__ import annotations

import numpy as np
import pytest
from support.batches import random_batch, random_state, unsharded_logits
from support.sharding import DTYPES, declared

from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import SealedWeights, seal_folder, seal_weights


def seal(declaration, folder):
    state = random_state(declaration)
    save_checkpoint(folder / "checkpoint.safetensors", declaration, state)
    seal_weights(open_checkpoint(folder / "checkpoint.safetensors"), folder / "sealed")
    return state, folder / "sealed"


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("sharding", ["auto", "row_wise", "column_wise", "data_parallel"])
def test_sealed_weights_score_as_the_checkpoint_does(tmp_path, dtypes, sharding):
    declaration = declared(sharding, "sum", dtypes)
    state, folder = seal(declaration, tmp_path)
    batch = random_batch(declaration, 7)
    scores = Scorer.load(folder).logits(batch)
    assert np.abs(scores - unsharded_logits(declaration, state, batch, quantized=True)).max() <= 1e-5
    filled = DLRMFactory(declaration).build(weights=open_checkpoint(tmp_path / "checkpoint.safetensors"))
    assert np.array_equal(Scorer(filled).logits(batch), scores)


def test_lookups_read_the_mapped_file_in_place(tmp_path):
    _, folder = seal(declared("row_wise", "sum", DTYPES[4]), tmp_path)
    sealed = SealedWeights(folder)
    built = DLRMFactory(sealed.declaration).build(weights=sealed)
    (lookup,) = built.model.module.sparse_arch.embedding_bag_collection._lookups
    pointers = {kernel.tbe.weights_host.data_ptr() for kernel in lookup._emb_modules}
    assert pointers == {sealed.tables.bytes.data_ptr()}


@pytest.mark.parametrize("missing", ["declaration.yaml", "dense.safetensors", "tables.bin"])
def test_a_missing_file_is_named(tmp_path, missing):
    _, folder = seal(declared("auto", "sum", DTYPES[0]), tmp_path)
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=missing):
        Scorer.load(folder)


def test_a_pickle_is_not_loaded(tmp_path):
    import pickle

    _, folder = seal(declared("auto", "sum", DTYPES[0]), tmp_path)
    (folder / "dense.safetensors").write_bytes(pickle.dumps({"over_arch": 1}))
    seal_folder(folder)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        Scorer.load(folder)


def test_dense_weights_of_another_model_are_refused(tmp_path):
    _, folder = seal(declared("auto", "sum", DTYPES[0]), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, dcn = seal(declared("auto", "sum", DTYPES[0], "dlrm_dcn"), other)
    (folder / "dense.safetensors").write_bytes((dcn / "dense.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"dense\.safetensors: has \d+ bytes but \d+ were sealed"):
        Scorer.load(folder)
    seal_folder(folder)
    with pytest.raises(WeightsError, match="dense weights"):
        Scorer.load(folder)
