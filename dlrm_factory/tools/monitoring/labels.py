"""Labels that come later, joined with the scores that workers kept: calibration and normalized entropy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from dlrm_factory.errors import DataError, ServingError
from dlrm_factory.host.worker_file import files_of_workers
from dlrm_factory.monitoring.score_log import SCORES_SUFFIX, keys_of, read_scores
from dlrm_factory.tools.monitoring.label_figures import LabelFigures, write_figures
from dlrm_factory.tools.monitoring.reading import ModelReading, read_models
from dlrm_factory.tools.server import running_server

__all__ = ["JoinedLabels", "VersionLabels", "join_labels"]

_COLUMNS = "request_id, label and, where requests have several samples, index"
_MIN_PROBABILITY = 1e-15


@dataclass(frozen=True, kw_only=True)
class VersionLabels:
    """Figures of one model version."""

    model: str
    version: str
    figures: LabelFigures

    def as_dict(self) -> dict[str, Any]:
        """Encode for JSON."""
        return {
            "model": self.model,
            "version": self.version,
            "joined": self.figures.joined,
            "mean_label": self.figures.label_sum / self.figures.joined if self.figures.joined else None,
            "calibration": self.figures.calibration,
            "normalized_entropy": self.figures.normalized_entropy,
        }


@dataclass(frozen=True, kw_only=True)
class JoinedLabels:
    """Outcome of a join.

    Fields:
        labels: in the file.
        unmatched: for which no worker has kept a score.
        versions: the others, by the version that had scored them.
    """

    labels: int
    unmatched: int
    versions: list[VersionLabels]


def join_labels(path: Path, run_dir: Path = Path(".dlrm"), *, temporary: Path | None = None) -> JoinedLabels:
    """Join labels that came later with the scores that a running server has kept, as `dlrm labels` does.

    The figures are kept beside the workers' files, where metrics and status find them.

    Args:
        path: .csv, .parquet or .jsonl with request_id, label, and index in the request.
        run_dir: of the server.
        temporary: temporary folder of a server that `dlrm serve` did not start, in place of ``run_dir``.

    Raises:
        DataError: the file cannot be read, or a value in it is none.
        ServingError: no server runs there.
    """
    if temporary is None:
        state = running_server(run_dir)
        if state is None:
            raise ServingError(f"no server runs in {run_dir}; scores end with the server that gave them")
        temporary = Path(state.tmp)
    keys, labels = _read(path)
    found = np.zeros(len(keys), dtype=np.bool_)
    versions = []
    for model in read_models(temporary):
        matched, logits = _match(keys, model, temporary)
        found |= matched
        if matched.any():
            figures = _figures(logits[matched], labels[matched])
            write_figures(model.folder, figures)
            versions.append(VersionLabels(model=model.model, version=model.version, figures=figures))
    return JoinedLabels(labels=len(keys), unmatched=int((~found).sum()), versions=versions)


def _match(
    keys: npt.NDArray[np.uint64], model: ModelReading, temporary: Path | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Mask of the keys that the model has scored, and their latest logits."""
    folders = {model.folder}
    paths = [path for path in files_of_workers(SCORES_SUFFIX, temporary) if path.parent in folders]
    records = read_scores(paths)
    logits = np.zeros(len(keys))
    if not len(records):
        return np.zeros(len(keys), dtype=np.bool_), logits
    order = np.argsort(records["key"], kind="stable")
    known = records["key"][order]
    # Of equal keys the last one, which came latest.
    at = np.searchsorted(known, keys, side="right") - 1
    matched = (at >= 0) & (known[np.maximum(at, 0)] == keys)
    logits[matched] = records["logit"][order][at[matched]]
    return matched, logits


def _figures(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.float64]) -> LabelFigures:
    scores = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    clipped = np.clip(scores, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    losses = -(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))
    return LabelFigures(
        joined=len(labels),
        label_sum=float(labels.sum()),
        score_sum=float(scores.sum()),
        log_loss_sum=float(losses.sum()),
        when=time.time(),
    )


def _read(path: Path) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    """Keys and labels in the file."""
    table = _table(path)
    names = set(table.column_names)
    if missing := {"request_id", "label"} - names:
        raise DataError(f"{path}: has no column {min(missing)}; send {_COLUMNS}")
    table = table.select([name for name in ("request_id", "label", "index") if name in names])
    for name in table.column_names:
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), pa.scalar(True)).as_py()
            raise DataError(f"{path}: row {row + 1} has no {name}; fill it in, or leave the row out")
    labels = _numbers(table["label"], path, "label")
    if (wrong := np.flatnonzero((labels != 0) & (labels != 1))).size:
        raise DataError(f"{path}: row {wrong[0] + 1}: label {labels[wrong[0]]:g} is neither 0 nor 1")
    places = _numbers(table["index"], path, "index") if "index" in names else np.zeros(len(labels))
    if (wrong := np.flatnonzero((places < 0) | (places != np.floor(places)))).size:
        raise DataError(
            f"{path}: row {wrong[0] + 1}: index {places[wrong[0]]:g} is no place of a sample: 0, 1, ..."
        )
    ids = table["request_id"].cast(pa.string()).to_pylist()
    one = [
        keys_of(name, np.array([place], dtype=np.uint64))[0] for name, place in zip(ids, places, strict=True)
    ]
    return np.array(one, dtype=np.uint64), labels


def _table(path: Path) -> pa.Table:
    kinds = {".csv": _read_csv, ".parquet": pa.parquet.read_table, ".jsonl": pa.json.read_json}
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: is no .csv, .parquet or .jsonl file; its columns are {_COLUMNS}")
    try:
        return read(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _read_csv(path: Path) -> pa.Table:
    # An id of digits alone is text too: 007 is not 7.
    options = pa.csv.ConvertOptions(column_types={"request_id": pa.string()})
    return pa.csv.read_csv(path, convert_options=options)


def _numbers(column: Any, path: Path, name: str) -> npt.NDArray[np.float64]:
    try:
        found: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name}: {str(error).splitlines()[0]}") from None
    return found
