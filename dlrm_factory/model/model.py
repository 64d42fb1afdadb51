"""Declaration → the model before it is planned and sharded: TorchRec's embeddings, and the dense net behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm_factory.config.declaration import DLRMDeclaration, Pooling
from dlrm_factory.errors import ModuleError, WeightsError
from dlrm_factory.model.builtin_nets import builtin_net
from dlrm_factory.model.net import Net, user_module

__all__ = [
    "EMBEDDINGS_PREFIX",
    "SEQUENCES_PREFIX",
    "RankingModel",
    "SparseArch",
    "TablesOnly",
    "is_table_key",
    "load_dense",
    "make_model",
    "state_key",
    "table_weight_key",
    "tables_of",
]

EMBEDDINGS_PREFIX = "sparse_arch.embedding_bag_collection.embedding_bags"
SEQUENCES_PREFIX = "sparse_arch.embedding_collection.embeddings"
_NET = "net.module."

_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


def is_table_key(key: str) -> bool:
    """Return True for the state dict key of a table's weight."""
    return key.startswith((EMBEDDINGS_PREFIX, SEQUENCES_PREFIX))


def table_weight_key(table: str, pooling: Pooling = "sum") -> str:
    """The state dict key of the weight of the table called ``table``."""
    return f"{SEQUENCES_PREFIX if pooling == 'none' else EMBEDDINGS_PREFIX}.{table}.weight"


def state_key(parameter: str) -> str:
    """The state dict key of the model's parameter called ``parameter``."""
    return parameter.removeprefix(_NET)


class SparseArch(nn.Module):
    """Embedding tables of a model: those whose bags are pooled, and those that keep a vector an id.

    forward(pooled features' KeyedJaggedTensor, sequence features' KeyedJaggedTensor or None) → pooled [B, W],
    sequences, a [B, T, D] a feature with zeros past its end, and their lengths, int64 [B]. Features are in declared
    order.
    """

    def __init__(
        self,
        declaration: DLRMDeclaration,
        bags: EmbeddingBagCollection | None,
        sequences: EmbeddingCollection | None,
    ) -> None:
        super().__init__()
        self.embedding_bag_collection, self.embedding_collection = bags, sequences
        self.padding = Padding(declaration)
        self._pooled = [feature.name for feature in declaration.pooled_features]
        self._sequences = [feature.name for feature in declaration.sequence_features]

    def forward(
        self, pooled: KeyedJaggedTensor, sequences: KeyedJaggedTensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        found = None if self.embedding_collection is None else self.embedding_collection(sequences)
        if self.embedding_bag_collection is None:
            vectors = torch.empty(pooled.stride(), 0, device=pooled.values().device)
        else:
            by_name = self.embedding_bag_collection(pooled)
            vectors = torch.cat([by_name[name] for name in self._pooled], dim=1)
        if found is None:
            return vectors, (), ()
        padded, lengths = self.padding([found[name] for name in self._sequences])
        return vectors, padded, lengths


class Padding(nn.Module):
    """Sequences [B, T, D] with zeros past their ends, and their lengths, int64 [B], of a JaggedTensor a feature.

    Features with the same max_length come in the same T: the longest of them, at least 1. A module, so that TorchRec's
    train pipeline, which traces what holds tables, need not trace it.
    """

    def __init__(self, declaration: DLRMDeclaration) -> None:
        super().__init__()
        self._max_lengths = [feature.max_length for feature in declaration.sequence_features]

    def forward(
        self, parts: Sequence[JaggedTensor]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        lengths = tuple(part.lengths().long() for part in parts)
        longest: dict[int, int] = {}
        for group, own in zip(self._max_lengths, lengths, strict=True):
            longest[group] = max(longest.get(group, 1), int(own.max()) if len(own) else 1)
        groups = zip(self._max_lengths, parts, strict=True)
        return tuple(part.to_padded_dense(longest[group]) for group, part in groups), lengths


class RankingModel(nn.Module):
    """Embeddings and the dense net behind them.

    forward(dense float32 [B, number of dense features], pooled features' KeyedJaggedTensor, sequence features' or
    None) → float32 [B, C], the columns of all outputs; of TorchRec's architectures logits [B, 1].

    Its state dict has the keys of TorchRec's own model, or of the user's module, beside those of the tables.
    """

    def __init__(self, sparse_arch: SparseArch, net: Net) -> None:
        super().__init__()
        self.sparse_arch = sparse_arch
        self.net = net
        self._register_state_dict_hook(_without_net)
        self.register_load_state_dict_pre_hook(_with_net)

    def forward(
        self, dense: torch.Tensor, pooled: KeyedJaggedTensor, sequences: KeyedJaggedTensor | None = None
    ) -> torch.Tensor:
        vectors, padded, lengths = self.sparse_arch(pooled, sequences)
        found: torch.Tensor = self.net(dense, vectors, padded, lengths)
        return found


def _without_net(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + _NET)]:
        state[prefix + key.removeprefix(prefix + _NET)] = state.pop(key)


def _with_net(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [
        key for key in state if key.startswith(prefix) and not is_table_key(key.removeprefix(prefix))
    ]:
        state[prefix + _NET + key.removeprefix(prefix)] = state.pop(key)


def make_model(
    declaration: DLRMDeclaration,
    *,
    tables_device: str | torch.device = "meta",
    dense_device: str | torch.device = "cpu",
) -> RankingModel:
    """The declared model. On ``meta`` the tables take no memory; dense weights are random initial ones.

    ModuleError if it is a module of the user's own that cannot be made.
    """
    place, dense = torch.device(tables_device), torch.device(dense_device)
    bags, sequences = _bags(declaration, place), _sequences(declaration, place)
    if declaration.module is None:
        assert bags is not None
        module: nn.Module = builtin_net(declaration, bags, dense)
    else:
        with dense:
            module = user_module(declaration)
        _check_keys(module, declaration)
    return RankingModel(SparseArch(declaration, bags, sequences), Net(declaration, module))


class TablesOnly(nn.Module):
    """The tables of a `RankingModel` under their names in it, on meta: all that a plan needs, none of its code."""

    def __init__(self, declaration: DLRMDeclaration) -> None:
        super().__init__()
        meta = torch.device("meta")
        self.sparse_arch = SparseArch(declaration, _bags(declaration, meta), _sequences(declaration, meta))


def _bags(declaration: DLRMDeclaration, device: torch.device) -> EmbeddingBagCollection | None:
    """Tables are fp32 until they are quantised.

    A weighted model sums every bag: its means come as weights, see `dlrm_factory.batch.jagged`.
    """
    tables = [table for table in declaration.tables if table.pooling != "none"]
    if not tables:
        return None
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=declaration.features_of(table.name),
                pooling=_POOLING["sum" if declaration.is_weighted else table.pooling],
            )
            for table in tables
        ],
        device=device,
        is_weighted=declaration.is_weighted,
    )


def _sequences(declaration: DLRMDeclaration, device: torch.device) -> EmbeddingCollection | None:
    tables = [table for table in declaration.tables if table.pooling == "none"]
    if not tables:
        return None
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=table.name,
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=declaration.features_of(table.name),
            )
            for table in tables
        ],
        device=device,
    )


def _check_keys(module: nn.Module, declaration: DLRMDeclaration) -> None:
    for key, tensor in module.state_dict().items():
        if key.startswith("sparse_arch."):
            raise ModuleError(
                f'{type(module).__name__} has a weight "{key}"; sparse_arch is the name of the tables, rename it'
            )
        if not tensor.dtype.is_floating_point:
            raise ModuleError(
                f'{type(module).__name__} has a weight "{key}" of {tensor.dtype}; weights are floats, and a constant '
                "is a buffer with persistent=False"
            )


def tables_of(model: RankingModel) -> Iterator[EmbeddingBagCollection | EmbeddingCollection]:
    """The model's unsharded collections of tables."""
    arch = model.sparse_arch
    for collection in (arch.embedding_bag_collection, arch.embedding_collection):
        if collection is not None:
            yield collection


def load_dense(model: RankingModel, state: Mapping[str, torch.Tensor]) -> None:
    """Load every weight but the tables' from ``state``, whose tables are passed over.

    WeightsError if a dense weight is missing, misshapen or not of this model.
    """
    try:
        dense = {key: tensor for key, tensor in state.items() if not is_table_key(key)}
        missing, unexpected = model.net.module.load_state_dict(dense, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"dense weights do not fit the declared model: {error}") from None
    if missing or unexpected:
        raise WeightsError(
            f"dense weights are not the declared model's: missing {missing}, not of this model {unexpected}"
        )
