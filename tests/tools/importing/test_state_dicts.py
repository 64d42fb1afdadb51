"""Plain TorchRec state dicts, in every wrapping and file, score as their source model does."""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.batches import random_batch, random_state
from support.sharding import ARCHITECTURES, declared
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_factory.config import DenseFeature, DLRMDeclaration, SparseFeature, Table, tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.importing import import_weights
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint

TOLERANCE = 1e-5


def assert_same(output, state):
    found = load_file(output)
    assert set(found) == set(state)
    assert [key for key in state if not torch.equal(found[key], state[key])] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_prefixed_state_dicts(architecture, prefix, tmp_path):
    declaration = declared("auto", "mean", ("fp32",) * 3, architecture)
    state = random_state(declaration)
    torch.save(OrderedDict((prefix + key, value) for key, value in state.items()), tmp_path / "w.pt")
    report = import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    assert (report.naming, report.ignored, report.notes) == ("torchrec", [], [])
    assert report.parameters == sum(value.numel() for value in state.values())
    assert_same(tmp_path / "c.safetensors", state)


def test_a_training_loop_s_file(tmp_path):
    """State dict, optimiser and counters in one file; numbers of NumPy, which are read and not made."""
    state = random_state(tiny())
    saved = {
        "epoch": 3,
        "loss": np.float64(0.5),
        "history": [np.float32(0.5), {"auc": 0.7}],
        "model_state_dict": state,
        "optimizer": {"state": {"over_arch.model.1.bias": torch.zeros(1)}, "param_groups": [{"lr": 0.1}]},
        "step": torch.tensor(7),
    }
    torch.save(saved, tmp_path / "w.pt")
    report = import_weights([tmp_path / "w.pt"], tiny(), tmp_path / "c.safetensors")
    assert report.ignored == ["optimizer.state.over_arch.model.1.bias", "step"]
    assert_same(tmp_path / "c.safetensors", state)


def test_a_file_of_an_old_torch(tmp_path):
    state = random_state(tiny())
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    import_weights([tmp_path / "w.pt"], tiny(), tmp_path / "c.safetensors")
    assert_same(tmp_path / "c.safetensors", state)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_safetensors(prefix, tmp_path):
    state = random_state(tiny())
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "w.safetensors")
    import_weights(
        [tmp_path / "w.safetensors"], tiny(), tmp_path / "c.safetensors", source_format="safetensors"
    )
    assert_same(tmp_path / "c.safetensors", state)


def test_safetensors_split_over_files(tmp_path):
    state = random_state(tiny())
    folder = tmp_path / "model"
    folder.mkdir()
    keys = list(state)
    save_file({key: state[key] for key in keys[:4]}, folder / "model-00001-of-00002.safetensors")
    save_file({key: state[key] for key in keys[4:]}, folder / "model-00002-of-00002.safetensors")
    import_weights([folder], tiny(), tmp_path / "c.safetensors")
    assert_same(tmp_path / "c.safetensors", state)
    save_file({keys[0]: state[keys[0]]}, folder / "model-00003-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"t_user_id.weight: is in .*00001.* and in .*00003"):
        import_weights([folder], tiny(), tmp_path / "c.safetensors")


def test_our_own_checkpoint(tmp_path):
    state = random_state(tiny())
    save_checkpoint(tmp_path / "a.safetensors", tiny(), state)
    import_weights([tmp_path / "a.safetensors"], tiny(), tmp_path / "b.safetensors")
    assert_same(tmp_path / "b.safetensors", state)
    assert open_checkpoint(tmp_path / "b.safetensors").metadata == {"imported": "torchrec, safetensors file"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype, tmp_path):
    state = {key: value.to(dtype) for key, value in random_state(tiny()).items()}
    torch.save(state, tmp_path / "w.pt")
    report = import_weights([tmp_path / "w.pt"], tiny(), tmp_path / "c.safetensors")
    assert report.notes[0].startswith(
        f"11 weights were {str(dtype).removeprefix('torch.')} and are float32 now: "
    )
    assert_same(tmp_path / "c.safetensors", {key: value.float() for key, value in state.items()})


def test_tensors_that_lie_otherwise_in_memory(tmp_path):
    """A transposed view, a slice of a larger tensor, and parameters."""
    state = random_state(tiny())
    views = dict(state)
    views["over_arch.model.1.bias"] = torch.nn.Parameter(state["over_arch.model.1.bias"])
    key = "dense_arch.model._mlp.1._linear.weight"
    views[key] = state[key].t().contiguous().t()
    key = table_weight_key("t_item_id")
    views[key] = torch.cat([state[key], state[key]])[: len(state[key])]
    torch.save(views, tmp_path / "w.pt")
    import_weights([tmp_path / "w.pt"], tiny(), tmp_path / "c.safetensors")
    assert_same(tmp_path / "c.safetensors", state)


def test_weights_that_share_memory(tmp_path):
    state = random_state(tiny())
    users, items = table_weight_key("t_user_id"), table_weight_key("t_item_id")
    state[items] = state[users][100:300]
    torch.save(state, tmp_path / "w.pt")
    import_weights([tmp_path / "w.pt"], tiny(), tmp_path / "c.safetensors")
    assert_same(tmp_path / "c.safetensors", state)


def test_a_table_larger_than_a_block(tmp_path):
    """Half a million rows in half precision: converted block by block, on disk."""
    tables = [msgspec.structs.replace(tiny().tables[0], num_embeddings=600_000), *tiny().tables[1:]]
    declaration = msgspec.structs.replace(tiny(), tables=tables)
    state = {key: value.half() for key, value in random_state(declaration).items()}
    torch.save(state, tmp_path / "w.pt")
    import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    assert_same(tmp_path / "c.safetensors", {key: value.float() for key, value in state.items()})


def test_scores_are_the_source_s(tmp_path):
    """The model of torchrec_dlrm's dlrm_main.py: DLRMTrain over tables t_cat_0, t_cat_1, …, built by TorchRec."""
    rows, size = [30, 12, 7, 90], 8
    tables = [
        EmbeddingBagConfig(
            name=f"t_cat_{i}", num_embeddings=n, embedding_dim=size, feature_names=[f"cat_{i}"]
        )
        for i, n in enumerate(rows)
    ]
    torch.manual_seed(3)
    bags = EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))
    source = DLRMTrain(
        DLRM(bags, dense_in_features=13, dense_arch_layer_sizes=[16, size], over_arch_layer_sizes=[16, 8, 1])
    )
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(3)  # scores far from a half
    torch.save(source.state_dict(), tmp_path / "w.pt")
    declaration = DLRMDeclaration(
        dense_arch_layer_sizes=[16, size],
        over_arch_layer_sizes=[16, 8, 1],
        dense_features=[DenseFeature(name=f"int_{i}") for i in range(13)],
        sparse_features=[SparseFeature(name=f"cat_{i}", table=f"t_cat_{i}") for i in range(len(rows))],
        tables=[Table(name=f"t_cat_{i}", num_embeddings=n, embedding_dim=size) for i, n in enumerate(rows)],
    )
    import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")

    batch = random_batch(declaration, 64)
    features = KeyedJaggedTensor(
        keys=declaration.sparse_names,
        values=torch.from_numpy(batch.values),
        lengths=torch.from_numpy(batch.lengths.reshape(-1)),
    )
    with torch.no_grad():
        expected = torch.sigmoid(source.model(torch.from_numpy(batch.dense), features)).reshape(-1).numpy()
    built = DLRMFactory(declaration).build(weights=open_checkpoint(tmp_path / "c.safetensors"))
    found = 1 / (1 + np.exp(-Scorer(built).logits(batch).astype(np.float64)))
    assert np.abs(found - expected).max() <= TOLERANCE
    assert np.ptp(expected) > 0.1
