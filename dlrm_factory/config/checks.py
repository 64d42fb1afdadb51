"""The rules a declaration must keep that its types alone cannot say. One function a rule.

Each rule yields ``"$.path: what is wrong, what is allowed, what to do"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from dlrm_factory.config.architecture_checks import ARCHITECTURE_RULES, SAFE_NAME
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.label import parse_label
from dlrm_factory.config.sizes import parse_bytes
from dlrm_factory.errors import near_matches

__all__ = ["problems_of"]

Rule = Callable[[DLRMDeclaration], Iterator[str]]

# Attributes of torch.nn.ModuleDict, in which TorchRec keeps the tables by name. A test compares them.
_ATTRIBUTES = """
    T_destination _apply _backward_hooks _backward_pre_hooks _buffers _call_impl _compiled_call_impl
    _forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs _forward_pre_hooks
    _forward_pre_hooks_with_kwargs _get_backward_hooks _get_backward_pre_hooks _get_name
    _is_full_backward_hook _load_from_state_dict _load_state_dict_post_hooks _load_state_dict_pre_hooks
    _maybe_warn_non_full_backward_hook _modules _named_members _non_persistent_buffers_set _parameters
    _register_load_state_dict_pre_hook _register_state_dict_hook _replicate_for_data_parallel
    _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version _wrapped_call_impl
    add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
    to_empty train training type update values xpu zero_grad
    """
_OF_MODULE_DICT = frozenset(_ATTRIBUTES.split())
_MAX_ROWS = 2**31 - 1  # fbgemm's lookup casts indices to int32


def problems_of(declaration: DLRMDeclaration) -> list[str]:
    """Every broken rule, in the order of the file."""
    return [problem for rule in _RULES for problem in rule(declaration)]


def _names(d: DLRMDeclaration) -> Iterator[str]:
    # A dot or an @ in a name would be taken apart again by state dicts and by TorchRec's feature@table names.
    for section, names in (
        ("dense_features", d.dense_names),
        ("sparse_features", d.sparse_names),
        ("tables", [table.name for table in d.tables]),
    ):
        for i, name in enumerate(names):
            if not SAFE_NAME.fullmatch(name):
                yield (
                    f'$.{section}[{i}].name: "{name}" is not a name; use letters, digits, "_" and "-", '
                    'starting with a letter or "_"'
                )
            elif section == "tables" and (name in _OF_MODULE_DICT or name.startswith("__")):
                yield (
                    f'$.tables[{i}].name: "{name}" is an attribute of torch.nn.ModuleDict, in which TorchRec keeps '
                    f"tables by name; choose another, such as t_{name.strip('_')}"
                )


def _something_declared(d: DLRMDeclaration) -> Iterator[str]:
    needed = ("sparse_features", "tables") if d.module else ("dense_features", "sparse_features", "tables")
    for section in needed:
        if not getattr(d, section):
            yield f"$.{section}: is empty; a DLRM needs at least one entry here"


def _no_duplicates(d: DLRMDeclaration) -> Iterator[str]:
    seen: dict[str, str] = {}
    for section, names in (("dense_features", d.dense_names), ("sparse_features", d.sparse_names)):
        for i, name in enumerate(names):
            path = f"$.{section}[{i}].name"
            if name in seen:
                yield f'{path}: duplicate feature name "{name}", already declared at {seen[name]}; rename one'
            seen.setdefault(name, path)
    tables: dict[str, str] = {}
    for i, table in enumerate(d.tables):
        path = f"$.tables[{i}].name"
        if table.name in tables:
            first = tables[table.name]
            yield f'{path}: duplicate table name "{table.name}", already declared at {first}; rename one'
        tables.setdefault(table.name, path)


def _features_have_tables(d: DLRMDeclaration) -> Iterator[str]:
    tables = [table.name for table in d.tables]
    for i, feature in enumerate(d.sparse_features):
        if feature.table not in tables:
            yield (
                f'$.sparse_features[{i}].table: feature "{feature.name}" has no table "{feature.table}"'
                f"{near_matches(feature.table, tables)}; declare it under $.tables"
            )


def _tables_are_used(d: DLRMDeclaration) -> Iterator[str]:
    used = {feature.table for feature in d.sparse_features}
    for i, table in enumerate(d.tables):
        if table.name not in used:
            yield (
                f'$.tables[{i}]: no feature uses table "{table.name}"; '
                "remove it or name it in a sparse feature"
            )


def _table_sizes(d: DLRMDeclaration) -> Iterator[str]:
    for i, table in enumerate(d.tables):
        if not 1 <= table.num_embeddings <= _MAX_ROWS:
            yield f"$.tables[{i}].num_embeddings: {table.num_embeddings} is outside [1, {_MAX_ROWS}]"
        if table.embedding_dim < 4 or table.embedding_dim % 4:
            yield (
                f"$.tables[{i}].embedding_dim: {table.embedding_dim} is not a positive multiple of 4, "
                "which fbgemm's kernels need"
            )


def _features(d: DLRMDeclaration) -> Iterator[str]:
    for i, dense in enumerate(d.dense_features):
        if not math.isfinite(dense.default):
            yield f"$.dense_features[{i}].default: {dense.default} is not a finite number"
        if dense.clip is not None and not -math.inf < dense.clip[0] < dense.clip[1] < math.inf:
            least, most = dense.clip
            yield f"$.dense_features[{i}].clip: [{least}, {most}] is not a least and a greater, finite number"
        for k, word in enumerate(dense.missing_values or ()):
            path = f"$.dense_features[{i}].missing_values[{k}]"
            if not word.strip():
                yield f"{path}: is empty; an empty cell is missing in any case, remove it"
            elif _is_finite_number(word):
                yield (
                    f'{path}: "{word}" is a number, and a request that sends it means that number; '
                    "write such cells as empty ones in the data"
                )
    for i, sparse in enumerate(d.sparse_features):
        if sparse.max_length < 1:
            yield f"$.sparse_features[{i}].max_length: {sparse.max_length} is not positive"
        if sparse.pooling_factor is not None and not 0 < sparse.pooling_factor <= sparse.max_length:
            yield (
                f"$.sparse_features[{i}].pooling_factor: {sparse.pooling_factor:g} is outside "
                f"(0, {sparse.max_length}], the lengths that a bag may have"
            )
        if sparse.weighted and any(t.name == sparse.table and t.pooling == "mean" for t in d.tables):
            yield (
                f'$.sparse_features[{i}].weighted: table "{sparse.table}" has pooling mean, and a mean may be '
                "over the ids or over the weights; use pooling: sum (weights that add up to 1 make it a mean)"
            )


def _is_finite_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _statistics(d: DLRMDeclaration) -> Iterator[str]:
    for i, dense in enumerate(d.dense_features):
        for field in ("mean", "std"):
            value = getattr(dense, field)
            path = f"$.dense_features[{i}].{field}"
            if value is None:
                continue
            if not dense.is_standardized:
                yield f"{path}: belongs to transform standardize or log1p_standardize; remove it"
            elif not math.isfinite(value) or (field == "std" and value <= 0):
                allowed = "a finite number" if field == "mean" else "a positive, finite number"
                yield f"{path}: {value} is not {allowed}"
        if (dense.mean is None) != (dense.std is None):
            yield f"$.dense_features[{i}]: give both mean and std, or neither, for `dlrm train` to find them"


def _vocabularies(d: DLRMDeclaration) -> Iterator[str]:
    for i, sparse in enumerate(d.sparse_features):
        rows = sparse.out_of_vocabulary
        path = f"$.sparse_features[{i}].out_of_vocabulary"
        if rows is not None and sparse.ids != "vocabulary":
            yield f"{path}: belongs to ids: vocabulary, not to ids: {sparse.ids}; remove it"
        elif isinstance(rows, int) and rows < 1:
            yield f"{path}: {rows} is not a positive number of rows; or choose error or drop"
    for i, table in enumerate(d.tables):
        kinds = {feature.ids for feature in d.sparse_features if feature.table == table.name}
        if "vocabulary" in kinds and len(kinds) > 1:
            # The rows of a vocabulary mean ids; a hash or a bare row number would land on other ids' rows.
            yield f"$.tables[{i}]: some of its features use ids: vocabulary and some do not; all or none may"
        if "vocabulary" in kinds and d.vocabulary_room(table.name) < 1:
            yield (
                f"$.tables[{i}].num_embeddings: {table.num_embeddings} leaves no row for ids of the vocabulary "
                "beside those for out_of_vocabulary; raise it"
            )
        if table.min_count < 1:
            yield f"$.tables[{i}].min_count: {table.min_count} is not positive"
        if table.min_count > 1 and "vocabulary" not in kinds:
            yield f"$.tables[{i}].min_count: belongs to tables with ids: vocabulary; remove it"


def _sharding(d: DLRMDeclaration) -> Iterator[str]:
    s = d.sharding
    if s.world_size < 1:
        yield f"$.sharding.world_size: {s.world_size} is not positive"
    if s.hosts < 1 or s.world_size % max(s.hosts, 1):
        yield f"$.sharding.hosts: {s.hosts} does not divide world_size {s.world_size}"
    if s.memory is not None:
        try:
            parse_bytes(s.memory)
        except ValueError as error:
            yield f"$.sharding.memory: {error}"
    try:
        parse_bytes(s.replicate_below, least=0)
    except ValueError as error:
        yield f"$.sharding.replicate_below: {error}"
    if not 0 < s.timeout_s < math.inf:
        yield f"$.sharding.timeout_s: {s.timeout_s:g} is not a positive, finite number"
    elif s.world_size > 1 and s.timeout_s >= d.serving.response_timeout_s:
        yield (
            f"$.sharding.timeout_s: {s.timeout_s:g} s is not below serving.response_timeout_s "
            f"{d.serving.response_timeout_s}, after which TorchServe ends the worker unanswered; lower it"
        )


def _serving(d: DLRMDeclaration) -> Iterator[str]:
    s = d.serving
    # TorchServe takes a max_batch_delay_ms of 0 for "not given" (100 ms), and raises min_workers 0 to 1.
    for field in s.__struct_fields__:
        value = getattr(s, field)
        if isinstance(value, int) and value < 1:
            yield f"$.serving.{field}: {value} is below 1"
    if s.max_workers < s.min_workers:
        yield f"$.serving.max_workers: {s.max_workers} is below min_workers {s.min_workers}"


def _training(d: DLRMDeclaration) -> Iterator[str]:
    t = d.training
    for field in ("batch_size", "epochs", "learning_rate", "sparse_learning_rate"):
        if not 0 < getattr(t, field) < math.inf:
            yield f"$.training.{field}: {getattr(t, field)} is not a positive, finite number"
    for field in ("gradient_clipping", "evaluate_every", "early_stopping"):
        value = getattr(t, field)
        if value is not None and not 0 < value < math.inf:
            yield f"$.training.{field}: {value} is not a positive, finite number"
    if t.warmup_steps < 0:
        yield f"$.training.warmup_steps: {t.warmup_steps} is below 0"
    if not 0 <= t.max_bad_rows < 1:
        yield f"$.training.max_bad_rows: {t.max_bad_rows} is outside [0, 1); it is a share of the rows"
    if t.split == "time" and t.time_column is None:
        yield "$.training.time_column: is needed for split: time; name the column with each row's time"
    if t.split != "time" and t.time_column is not None:
        yield "$.training.time_column: is only for split: time"
    label = parse_label(t.label).column
    if t.time_column is not None and t.time_column == label:
        yield f'$.training.time_column: "{t.time_column}" is the label'
    if t.validation is not None and not 0 < t.validation < 1:
        yield f"$.training.validation: {t.validation} is outside (0, 1); it is a share of the training rows"
    if t.refit and t.early_stopping is None:
        yield "$.training.refit: needs early_stopping, which finds how long to train"
    if not 0 < t.holdout < 1:
        yield f"$.training.holdout: {t.holdout} is outside (0, 1)"
    if not 0 <= t.seed < 2**63:
        yield f"$.training.seed: {t.seed} is outside [0, 2**63)"
    if (label in d.dense_names or label in d.sparse_names) and d.outputs is None:
        yield f'$.training.label: "{label}" is also a feature; the model would be told the answer'
    if not t.separator:
        yield "$.training.separator: is empty"


_RULES: tuple[Rule, ...] = (
    _something_declared,
    _names,
    _no_duplicates,
    *ARCHITECTURE_RULES,
    _features,
    _statistics,
    _vocabularies,
    _features_have_tables,
    _tables_are_used,
    _table_sizes,
    _sharding,
    _serving,
    _training,
)
