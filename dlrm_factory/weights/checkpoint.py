"""Float checkpoints: one safetensors file with the plain model's state dict, the declaration and vocabularies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import dump_declaration, parse_declaration
from dlrm_factory.errors import ConfigError, WeightsError
from dlrm_factory.features import Vocabularies
from dlrm_factory.model.model import is_table_key, make_model, table_weight_key
from dlrm_factory.weights.held_out import HeldOut, is_held_out
from dlrm_factory.weights.seen_ids import SeenIds, is_seen_ids
from dlrm_factory.weights.tensor_rows import TensorRows
from dlrm_factory.weights.tensor_writing import write_tensors

__all__ = ["GOLDEN_ROWS", "Checkpoint", "open_checkpoint", "save_checkpoint"]

# One entry holds all of ours: safetensors writes several in random order, and equal checkpoints would differ.
_METADATA = "dlrm"
_DECLARATION = "declaration"
GOLDEN_ROWS = "golden_rows"  # raw rows by name, a JSON list, in the metadata
_VOCABULARIES = "vocabularies"  # the bytes of a vocabulary file, as one more tensor


class Checkpoint:
    """An opened checkpoint. Tensors are read when asked for; tables by row ranges.

    ``metadata``: what training reported, as text. ``golden_rows``: some rows that training did not see, raw values by
    feature.
    """

    def __init__(self, path: Path) -> None:
        """WeightsError if ``path`` is not a checkpoint, or its tensors are not the declaration's."""
        self.path = path
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such checkpoint")
        try:
            self._file = safe_open(path, framework="pt")
            self._rows = TensorRows(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: is not a safetensors checkpoint: {error}") from None
        metadata = _read_metadata(self._file.metadata() or {}, path)
        try:
            self.declaration = parse_declaration(metadata.pop(_DECLARATION), source=f"{path}: declaration")
        except ConfigError as error:
            raise WeightsError(str(error)) from None
        self.golden_rows = _read_golden_rows(metadata.pop(GOLDEN_ROWS, "[]"), path)
        self.metadata = metadata
        shapes = self._shapes()
        stored = shapes.pop(_VOCABULARIES, None) is not None
        beside = [key for key in shapes if _is_beside(key)]
        for key in beside:
            del shapes[key]
        _check_shapes(shapes, self.declaration, path)
        self.vocabularies = self._read_vocabularies() if stored else None
        _check_vocabularies(self.vocabularies, self.declaration, path)
        tensors = {key: self._file.get_tensor(key) for key in beside}
        has_samples = any(map(is_held_out, tensors))
        self.held_out = HeldOut.of_tensors(tensors, str(path)) if has_samples else None
        self.seen_ids = SeenIds.of_tensors(tensors, self.declaration, str(path))

    def dense_state(self) -> dict[str, torch.Tensor]:
        """Every weight but the tables': float32, by state dict key."""
        return {
            key: self._file.get_tensor(key)
            for key in self._file.keys()  # noqa: SIM118
            if not is_table_key(key) and key != _VOCABULARIES and not _is_beside(key)
        }

    def table_rows(self, table: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of ``table``: float32 [stop - start, D]."""
        return self._rows.rows(table_weight_key(table, self.declaration.table(table).pooling), start, stop)

    def _read_vocabularies(self) -> Vocabularies:
        data: npt.NDArray[np.uint8] = self._file.get_tensor(_VOCABULARIES).numpy()
        return Vocabularies(data.data, f"{self.path}: vocabularies")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the checkpoint at ``path``, checked against the declaration it carries; tables stay on disk.

    WeightsError if the file is missing, damaged or misshapen.
    """
    return Checkpoint(Path(path))


def save_checkpoint(
    path: str | Path,
    declaration: DLRMDeclaration,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    vocabularies: Vocabularies | None = None,
    held_out: HeldOut | None = None,
    seen_ids: SeenIds | None = None,
    release: bool = False,
) -> None:
    """Write ``state`` (keys of the unsharded model, float32) and ``declaration`` to ``path``, all or nothing.

    ``vocabularies``: of the tables with ``ids: vocabulary``. ``held_out``: samples to verify archives with.
    ``seen_ids``: of training.
    ``release``: give back pages of ``state`` that are mapped from files nobody wrote to, so that few are in memory.
    """
    path = Path(path)
    _check_vocabularies(vocabularies, declaration, path)
    _check_shapes({key: tuple(tensor.shape) for key, tensor in state.items()}, declaration, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in state.items()}
        if vocabularies is not None:
            tensors[_VOCABULARIES] = torch.from_numpy(np.frombuffer(vocabularies.data, dtype=np.uint8).copy())
        if held_out is not None:
            tensors |= held_out.tensors()
        if seen_ids is not None:
            tensors |= seen_ids.tensors()
        own = _encode_metadata(
            {**(metadata or {}), _DECLARATION: dump_declaration(declaration, with_sources=True)}
        )
        write_tensors(partial, tensors, {_METADATA: own}, release=release)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_beside(key: str) -> bool:
    """True if the tensor called ``key`` is no weight."""
    return is_held_out(key) or is_seen_ids(key)


def _encode_metadata(metadata: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(sorted(metadata.items()))).decode()


def _read_metadata(found: Mapping[str, str], path: Path) -> dict[str, str]:
    try:
        metadata = msgspec.json.decode(found.get(_METADATA, "{}"), type=dict[str, str])
    except msgspec.MsgspecError:
        metadata = {}
    if _DECLARATION not in metadata:
        raise WeightsError(f"{path}: has no declaration in its metadata; it was not made by `dlrm train`")
    return metadata


def _read_golden_rows(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(text, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError):
        raise WeightsError(
            f"{path}: its golden rows are not a JSON list of rows; train the model again"
        ) from None


def _check_vocabularies(found: Vocabularies | None, declaration: DLRMDeclaration, path: Path) -> None:
    tables = declaration.vocabulary_tables
    if found is not None:
        found.check(declaration)
    elif tables:
        raise WeightsError(f"{path}: has no vocabulary of the ids of {', '.join(tables)}; train the model")


def _check_shapes(found: Mapping[str, tuple[int, ...]], declaration: DLRMDeclaration, path: Path) -> None:
    expected = {
        key: tuple(tensor.shape)
        for key, tensor in make_model(declaration, dense_device="meta").state_dict().items()
    }
    problems = [f"  missing: {key} {expected[key]}" for key in expected if key not in found]
    problems += [f"  not of this model: {key} {found[key]}" for key in found if key not in expected]
    problems += [
        f"  {key}: is {found[key]}, the declaration says {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if problems:
        raise WeightsError(f"{path}: its weights are not the declared model's\n" + "\n".join(problems[:20]))
