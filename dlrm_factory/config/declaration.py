"""The model's declaration as frozen structs. One YAML file holds one `Declaration`.

Legend used all over the project: B samples, F sparse features, D embedding_dim.
The rules that span several fields are in `checks`; reading and writing files is in `reading`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dlrm_factory.config.options import ServingOptions, ShardingOptions, Strict, TrainingOptions

__all__ = [
    "ARCHITECTURE_FIELDS",
    "Architecture",
    "DLRMDeclaration",
    "DenseFeature",
    "IdKind",
    "ModuleArchitecture",
    "Output",
    "Pooling",
    "Sharding",
    "SparseFeature",
    "Table",
    "TableDtype",
]

Architecture = Literal["dlrm", "dlrm_dcn", "dlrm_projection", "dlrm_transformer", "deepfm"]
Pooling = Literal["sum", "mean", "none"]
TableDtype = Literal["fp32", "fp16", "int8", "int4"]
Sharding = Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]
IdKind = Literal["index", "hash", "vocabulary"]
DenseTransform = Literal["none", "log1p", "standardize", "log1p_standardize"]
Unreadable = Literal["error", "missing"]


class DenseFeature(Strict, kw_only=True, frozen=True):
    """One number a sample. In this order: default, clip, log1p, standardise.

    Fields:
        name: the name in requests and in the training data's column.
        default: taken when a sample leaves the feature out or sends null.
        clip: the least and the greatest value; what is beyond becomes the nearer one.
        transform: ``log1p`` for counts: ln(1 + max(x, 0)); ``standardize``: (x - mean) / std;
            ``log1p_standardize``: one after the other; ``none``.
        mean, std: of the training part, for ``standardize``; `dlrm train` finds them if they are not given.
        missing_values: words that mean missing in a text cell of the training data, beside those that always do
            (nan, na, n/a, null, none); upper and lower case are alike. Requests say null, or leave the feature out.
        unreadable: what becomes of a cell of the training data that is no number: ``error`` (the row is bad), or
            ``missing`` (it takes the default). Requests are not concerned: such a value there is an error.
    """

    name: str
    default: float = 0.0
    clip: tuple[float, float] | None = None
    transform: DenseTransform = "none"
    mean: float | None = None
    std: float | None = None
    missing_values: tuple[str, ...] | None = None
    unreadable: Unreadable = "error"

    @property
    def takes_log(self) -> bool:
        return self.transform in ("log1p", "log1p_standardize")

    @property
    def is_standardized(self) -> bool:
        return self.transform in ("standardize", "log1p_standardize")


class SparseFeature(Strict, kw_only=True, frozen=True):
    """A bag of ids a sample: none, one or many.

    Fields:
        name: the name in requests and in the training data's column.
        table: the embedding table that is looked up; several features may share one.
        ids: ``index`` - an id is a row, 0 <= id < num_embeddings; ``hash`` - any int64 or string,
            hashed to a row (see `dlrm_factory.features.ids`); ``vocabulary`` - an int64 or string that
            training has seen, each with a row of its own.
        out_of_vocabulary: what becomes of an id that is not in the vocabulary: ``error``, ``drop`` (it is
            left out of its bag), or a number of rows at the table's end that such ids are hashed to.
            1 if not given. Only for ``ids: vocabulary``.
        weighted: a bag may carry a weight for each id; its rows are multiplied by them before they are summed.
        max_length: the most ids in one bag.
        pooling_factor: ids in a bag on average, by which plans balance the ranks; 1 if not given.
        over_max_length: what becomes of a longer bag: ``error``, or ``truncate`` to its first ids.
        unreadable: what becomes of a cell of the training data whose ids or weights cannot be taken: ``error`` (the row
            is bad), or ``missing`` (an empty bag). Requests are not concerned: such a value there is an error.
    """

    name: str
    table: str
    ids: IdKind = "index"
    out_of_vocabulary: Literal["error", "drop"] | int | None = None
    weighted: bool = False
    max_length: int = 1000
    pooling_factor: float | None = None
    over_max_length: Literal["error", "truncate"] = "error"
    unreadable: Unreadable = "error"

    @property
    def out_of_vocabulary_rows(self) -> int:
        """Rows at the table's end for ids that are not in the vocabulary."""
        if self.ids != "vocabulary" or isinstance(self.out_of_vocabulary, str):
            return 0
        return 1 if self.out_of_vocabulary is None else self.out_of_vocabulary


class Table(Strict, kw_only=True, frozen=True):
    """One embedding table of num_embeddings x embedding_dim.

    Fields:
        pooling: how a bag's rows become one vector; ``none`` keeps one an id, so that its features are sequences.
        dtype: how rows are stored for serving; training always uses fp32.
        sharding: where the rows go; ``auto`` leaves it to TorchRec's planner.
        min_count: an id seen fewer times in training gets no row of its own. Only for a table with a vocabulary.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    pooling: Pooling = "sum"
    dtype: TableDtype = "fp32"
    sharding: Sharding = "auto"
    min_count: int = 1


class Output(Strict, kw_only=True, frozen=True):
    """One of several results of a model.

    Fields:
        name: the name in requests and answers, and of the entry in what the module returns.
        kind: ``probability`` - the module gives a logit a sample; ``vector`` - it gives ``size`` numbers a sample, such
            as the embedding of a tower, answered as they are and not trained for themselves.
        size: numbers of a vector.
        label: the column with 0 or 1, or a comparison such as ``rating >= 4``; of the only probability
            ``training.label`` if not given. A row whose cell is empty does not count for this output.
        where: another output, whose label must be 1 for a row to count for this one: a purchase where it was clicked.
        loss_weight: factor of this output's loss in the sum that is trained.
    """

    name: str
    kind: Literal["probability", "vector"] = "probability"
    size: int | None = None
    label: str | None = None
    where: str | None = None
    loss_weight: float = 1.0

    @property
    def columns(self) -> int:
        """Numbers a sample: 1 of a probability, its logit."""
        return 1 if self.size is None else self.size


class ModuleArchitecture(Strict, kw_only=True, frozen=True):
    """A dense net of the user's own, see ``docs/models.md``.

    Fields:
        module: ``my_net.py:MyNet``, a file beside the declaration and the class in it, an ``nn.Module``.
        arguments: keyword arguments of the class.
        files: further files beside the declaration, which the first one imports by ``from . import layers``.
        prefixes: state dict prefixes of the user's own model → prefixes of the module's, for `dlrm import`.
        sources: text of each file; not written in a declaration's own file but found beside it.
    """

    module: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    files: list[str] = msgspec.field(default_factory=list)
    prefixes: dict[str, str] = msgspec.field(default_factory=dict)
    sources: dict[str, str] | None = None

    @property
    def file(self) -> str:
        return self.module.rpartition(":")[0]

    @property
    def class_name(self) -> str:
        return self.module.rpartition(":")[2]

    @property
    def file_names(self) -> list[str]:
        """Names of all files of code, that of the class first."""
        return [self.file, *self.files]


_SCORE = Output(name="score")

# All that makes the dense net, beside the features and the tables.
ARCHITECTURE_FIELDS = (
    "architecture",
    "dense_arch_layer_sizes",
    "over_arch_layer_sizes",
    "dcn_num_layers",
    "dcn_low_rank_dim",
    "interaction_branch1_layer_sizes",
    "interaction_branch2_layer_sizes",
    "nhead",
    "ntransformer_layers",
    "hidden_layer_size",
    "deep_fm_dimension",
)


class DLRMDeclaration(Strict, kw_only=True, frozen=True):
    """A whole model: features, tables, architecture, sharding, serving, training.

    Fields:
        architecture: TorchRec's ``DLRM``, ``DLRM_DCN``, ``DLRM_Projection``, ``DLRM_Transformer`` or
            ``SimpleDeepFMNN``, or a module of the user's own.
        dense_arch_layer_sizes: the bottom MLP; its last size is embedding_dim.
        over_arch_layer_sizes: the top MLP; its last size is 1. Not of ``deepfm``, which has one layer there.
        dcn_num_layers, dcn_low_rank_dim: the low-rank cross net, for ``dlrm_dcn`` only.
        interaction_branch1_layer_sizes, interaction_branch2_layer_sizes: for ``dlrm_projection`` only.
        nhead, ntransformer_layers: the transformer over the features' vectors, for ``dlrm_transformer`` only.
        hidden_layer_size, deep_fm_dimension: of ``deepfm`` only: the bottom MLP's hidden layer, and the deep part.
        outputs: of a module that gives several; if not given there is one probability, called ``score``.
        dense_features, sparse_features: their order is the model's order (upstream's request shape
            relies on it).
    """

    architecture: Architecture | ModuleArchitecture = "dlrm"
    dense_arch_layer_sizes: list[int] | None = None
    over_arch_layer_sizes: list[int] | None = None
    dcn_num_layers: int | None = None
    dcn_low_rank_dim: int | None = None
    interaction_branch1_layer_sizes: list[int] | None = None
    interaction_branch2_layer_sizes: list[int] | None = None
    nhead: int | None = None
    ntransformer_layers: int | None = None
    hidden_layer_size: int | None = None
    deep_fm_dimension: int | None = None
    outputs: list[Output] | None = None
    dense_features: list[DenseFeature] = msgspec.field(default_factory=list)
    sparse_features: list[SparseFeature]
    tables: list[Table]
    sharding: ShardingOptions = msgspec.field(default_factory=ShardingOptions)
    serving: ServingOptions = msgspec.field(default_factory=ServingOptions)
    training: TrainingOptions = msgspec.field(default_factory=TrainingOptions)

    @property
    def module(self) -> ModuleArchitecture | None:
        """The user's own module; None for an architecture of TorchRec's."""
        return self.architecture if isinstance(self.architecture, ModuleArchitecture) else None

    @property
    def all_outputs(self) -> list[Output]:
        """Outputs in order: the declared ones, or ``score`` alone."""
        return self.outputs or [_SCORE]

    @property
    def probabilities(self) -> list[Output]:
        """Outputs that are probabilities, in order."""
        return [output for output in self.all_outputs if output.kind == "probability"]

    @property
    def default_outputs(self) -> list[str]:
        """Names of the outputs of an answer to a request that names none."""
        return self.serving.outputs or [output.name for output in self.probabilities or self.all_outputs]

    @property
    def output_columns(self) -> int:
        """C: numbers a sample that the model gives, all outputs together."""
        return sum(output.columns for output in self.all_outputs)

    def columns_of(self, output: str) -> slice:
        """Columns of the output called ``output`` among those C; KeyError if there is none."""
        start = 0
        for each in self.all_outputs:
            if each.name == output:
                return slice(start, start + each.columns)
            start += each.columns
        raise KeyError(output)

    def label_of(self, output: Output) -> str:
        """Column or comparison that gives the labels of a probability."""
        return self.training.label if output.label is None else output.label

    @property
    def labels(self) -> list[str]:
        """Column or comparison of each probability, in order."""
        return [self.label_of(output) for output in self.probabilities]

    @property
    def sequence_features(self) -> list[SparseFeature]:
        """Features whose vectors are not pooled, in declared order."""
        none = {table.name for table in self.tables if table.pooling == "none"}
        return [feature for feature in self.sparse_features if feature.table in none]

    @property
    def pooled_features(self) -> list[SparseFeature]:
        """Features whose bags become one vector each, in declared order."""
        none = {table.name for table in self.tables if table.pooling == "none"}
        return [feature for feature in self.sparse_features if feature.table not in none]

    @property
    def pooled_columns(self) -> int:
        """W: numbers of a sample's pooled vectors, one after the other in declared order."""
        return sum(self.table(feature.table).embedding_dim for feature in self.pooled_features)

    @property
    def embedding_dim(self) -> int:
        """D, of architectures of TorchRec's: the same for every table."""
        return self.tables[0].embedding_dim

    @property
    def is_weighted(self) -> bool:
        """True if any feature's bags carry weights; TorchRec then wants weights for all of them."""
        return any(feature.weighted for feature in self.sparse_features)

    @property
    def vocabulary_tables(self) -> list[str]:
        """Tables whose ids are looked up in a vocabulary, in declared order."""
        used = {feature.table for feature in self.sparse_features if feature.ids == "vocabulary"}
        return [table.name for table in self.tables if table.name in used]

    @property
    def features(self) -> list[DenseFeature | SparseFeature]:
        """All features, the dense ones first."""
        return [*self.dense_features, *self.sparse_features]

    @property
    def dense_names(self) -> list[str]:
        return [feature.name for feature in self.dense_features]

    @property
    def sparse_names(self) -> list[str]:
        return [feature.name for feature in self.sparse_features]

    def table(self, name: str) -> Table:
        """The table called ``name``; KeyError if there is none."""
        return {table.name: table for table in self.tables}[name]

    def lookups(self, table: str) -> float:
        """Rows of ``table`` that a sample reads on average."""
        return sum(f.pooling_factor or 1.0 for f in self.sparse_features if f.table == table)

    def vocabulary_room(self, table: str) -> int:
        """Rows of ``table`` for ids of its vocabulary; the rest, at its end, is for ids that are not in it."""
        reserved = [f.out_of_vocabulary_rows for f in self.sparse_features if f.table == table]
        return self.table(table).num_embeddings - max(reserved, default=0)

    def features_of(self, table: str) -> list[str]:
        """Names of the sparse features that look up ``table``, in declared order."""
        return [feature.name for feature in self.sparse_features if feature.table == table]
