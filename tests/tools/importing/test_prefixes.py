"""Whole models of a user's own import by declared prefixes, and TorchRec's further models by their own names."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from support.batches import random_batch, random_state
from support.nets import trusted
from torch import nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.experimental.transformerdlrm import DLRM_Transformer
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from dlrm_factory.batch import to_dense, to_keyed_jagged_tensors
from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.model.net import user_module
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.importing import import_weights
from dlrm_factory.tools.importing.prefixes import name_before, with_prefixes
from dlrm_factory.weights.checkpoint import open_checkpoint

PREFIXES = {
    "model.ebc": "sparse_arch.embedding_bag_collection",
    "model.ec": "sparse_arch.embedding_collection",
    "model.net": "",
}


class Whole(nn.Module):
    """A user's model: TorchRec's embeddings, and a net behind them, called as the user likes."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        super().__init__()
        sizes = {
            table.name: {
                "name": table.name,
                "num_embeddings": table.num_embeddings,
                "embedding_dim": table.embedding_dim,
                "feature_names": declaration.features_of(table.name),
            }
            for table in declaration.tables
        }
        pooled = [sizes[t.name] for t in declaration.tables if t.pooling != "none"]
        kept = [sizes[t.name] for t in declaration.tables if t.pooling == "none"]
        self.ebc = EmbeddingBagCollection([EmbeddingBagConfig(**each) for each in pooled])
        self.ec = EmbeddingCollection([EmbeddingConfig(**each) for each in kept])
        self.net = user_module(declaration)


def din(prefixes: dict[str, str]) -> DLRMDeclaration:
    declaration = trusted("din")
    return msgspec.structs.replace(
        declaration, architecture=msgspec.structs.replace(declaration.module, prefixes=prefixes)
    )


def whole_state(declaration: DLRMDeclaration, prefix: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {prefix + key: value.detach().clone() for key, value in Whole(declaration).state_dict().items()}


@pytest.mark.parametrize("wrapper", ["", "_dmp_wrapped_module."])
def test_a_whole_model_imports_and_scores_as_it_did(wrapper, tmp_path):
    declaration = din(PREFIXES)
    state = whole_state(declaration, f"{wrapper}model.")
    saved = {
        "state_dict": state,
        "optimizer": {"state": {"model.net.a": torch.zeros(1)}},
        "step": torch.tensor(1),
    }
    torch.save(saved, tmp_path / "w.pt")
    report = import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    assert (report.naming, report.weights) == ("prefixes", len(state))
    assert report.ignored == ["optimizer.state.model.net.a", "step"]

    batch = random_batch(declaration, 6, longest=1, steps=1)
    checkpoint = open_checkpoint(tmp_path / "c.safetensors")
    found = Scorer(DLRMFactory(declaration).build(mode="float", weights=checkpoint)).outputs(batch)
    whole = Whole(declaration)
    whole.load_state_dict({key.removeprefix(f"{wrapper}model."): value for key, value in state.items()})
    pooled, sequences = to_keyed_jagged_tensors(batch, declaration)
    with torch.no_grad():
        bags, kept = whole.ebc(pooled), whole.ec(sequences)
        names = [feature.name for feature in declaration.sequence_features]
        expected = whole.net(
            to_dense(batch),
            {f.name: bags[f.name] for f in declaration.pooled_features},
            {name: kept[name].to_padded_dense(1) for name in names},
            {name: kept[name].lengths().long() for name in names},
        )
    assert np.abs(found[:, 0] - expected.numpy()).max() < 1e-5
    assert np.abs(found).max() > 0.01


def test_errors_name_what_is_missing_or_extra_as_the_source_does(tmp_path):
    declaration = din(PREFIXES)
    state = whole_state(declaration, "model.")
    bias = next(key for key in state if key.startswith("model.net.head") and key.endswith("bias"))
    state["model.net.extra.weight"] = state.pop(bias)
    state["other.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    lines = str(caught.value).splitlines()
    assert f"  missing: {bias} {list(state['model.net.extra.weight'].shape)}" in lines
    assert any(line.startswith("  not of this model: model.net.extra.weight") for line in lines)
    assert lines[-1] == "  under no declared prefix: other.weight"


def test_a_forgotten_prefix_shows(tmp_path):
    declaration = din({key: ours for key, ours in PREFIXES.items() if key != "model.ec"})
    torch.save(whole_state(declaration, "model."), tmp_path / "w.pt")
    with pytest.raises(WeightsError) as caught:
        import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    kept = [table.name for table in declaration.tables if table.pooling == "none"]
    for table in kept:
        assert f"under no declared prefix: model.ec.embeddings.{table}.weight" in str(caught.value)


def test_two_weights_of_one_name_are_told(tmp_path):
    declaration = din(PREFIXES | {"ema.net": ""})
    state = whole_state(declaration, "model.")
    key = next(key for key in state if key.startswith("model.net."))
    state["ema.net." + key.removeprefix("model.net.")] = state[key]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"{key} and ema\.net\..* are one weight"):
        import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")


def test_the_longest_prefix_of_whole_parts_counts():
    prefixes = {"model": "", "model.ebc": "tables", "": "rest"}
    names = ["model.ebc.t", "model.ebc2.t", "models.t", "module.model.x"]
    assert with_prefixes(names, prefixes, lambda part: part == "module") == {
        "model.ebc.t": "tables.t",
        "model.ebc2.t": "ebc2.t",
        "models.t": "rest.models.t",
        "module.model.x": "rest.module.model.x",
    }
    del prefixes[""]
    found = with_prefixes(names, prefixes, lambda part: part == "module")
    assert found == {"model.ebc.t": "tables.t", "model.ebc2.t": "ebc2.t", "module.model.x": "x"}
    assert [name_before(ours, prefixes) for ours in ("tables.t", "x")] == ["model.ebc.t", "model.x"]
    assert name_before("x", {"model.ebc": "tables"}) == "x"


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_torchrec_s_deepfm_and_transformer_import_by_their_own_names(tmp_path):
    for name in ("deepfm", "dlrm_transformer"):
        declaration = trusted(name)
        bags = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    name=table.name,
                    num_embeddings=table.num_embeddings,
                    embedding_dim=table.embedding_dim,
                    feature_names=declaration.features_of(table.name),
                )
                for table in declaration.tables
            ]
        )
        if name == "deepfm":
            model = SimpleDeepFMNN(
                len(declaration.dense_features),
                bags,
                declaration.hidden_layer_size,
                declaration.deep_fm_dimension,
            )
        else:
            model = DLRM_Transformer(
                embedding_bag_collection=bags,
                dense_in_features=len(declaration.dense_features),
                dense_arch_layer_sizes=declaration.dense_arch_layer_sizes,
                over_arch_layer_sizes=declaration.over_arch_layer_sizes,
                nhead=declaration.nhead,
                ntransformer_layers=declaration.ntransformer_layers,
            )
        state = {f"model.{key}": value for key, value in model.state_dict().items()}
        torch.save(state, tmp_path / f"{name}.pt")
        report = import_weights([tmp_path / f"{name}.pt"], declaration, tmp_path / f"{name}.safetensors")
        assert (report.naming, report.ignored) == ("torchrec", [])
        checkpoint = open_checkpoint(tmp_path / f"{name}.safetensors")
        dense = checkpoint.dense_state()
        assert dense
        assert all(torch.equal(dense[key], state[f"model.{key}"]) for key in dense)


def test_a_checkpoint_of_the_model_itself_imports(tmp_path):
    declaration = din(PREFIXES)
    state = random_state(declaration)
    torch.save(state, tmp_path / "w.pt")
    report = import_weights([tmp_path / "w.pt"], declaration, tmp_path / "c.safetensors")
    assert (report.naming, report.weights) == ("prefixes", len(state))
