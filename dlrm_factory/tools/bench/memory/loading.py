"""Time that a worker's tables take to load, beside reading their file once.

``python -m dlrm_factory.tools.bench.memory.loading FOLDER`` times it in a process of its own and prints JSON. The
file's pages are in the page cache in both cases: dropping them takes root.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from dlrm_factory.errors import WeightsError
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.seal import TABLE_FILE
from dlrm_factory.weights.sealed import SealedWeights

__all__ = ["Loading", "measure_loading"]

_BLOCK = 8 << 20
_PAGE = 4096
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Seconds, medians.

    Fields:
        read_s: reading the table file once, in blocks.
        map_s: opening the sealed weights as a worker does: mapped, header checked.
        touch_s: reading one byte of each page of the mapping, so that every page is there.
        model_s: the whole scorer: plan, shard, load. Without imports and compiling.
    """

    bytes: int
    read_s: float
    map_s: float
    touch_s: float
    model_s: float

    @property
    def ratio(self) -> float:
        """Loading the tables, every page, over reading the file once."""
        return (self.map_s + self.touch_s) / self.read_s


def measure_loading(folder: Path) -> Loading:
    """Time the load of the sealed weights in ``folder``, in a fresh process. WeightsError if they cannot be loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__, str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[4],
    )
    if done.returncode:
        raise WeightsError(f"{folder}: its load cannot be timed: {done.stderr.strip()[-500:]}")
    return Loading(**json.loads(done.stdout.splitlines()[-1]))


def _measure(folder: Path) -> Loading:
    Scorer.load(folder)  # what is loaded once a process is not measured
    reads, maps, touches, models = zip(*(_once(folder) for _ in range(_REPEATS)), strict=True)
    return Loading(
        bytes=(folder / TABLE_FILE).stat().st_size,
        read_s=median(reads),
        map_s=median(maps),
        touch_s=median(touches),
        model_s=median(models),
    )


def _once(folder: Path) -> tuple[float, float, float, float]:
    """One of each, in turn."""
    read_s = _seconds(lambda: _read(folder / TABLE_FILE))
    started = time.perf_counter()
    sealed = SealedWeights(folder)
    map_s = time.perf_counter() - started
    touch_s = _seconds(lambda: int(sealed.tables.bytes[::_PAGE].sum()))
    return read_s, map_s, touch_s, _seconds(lambda: Scorer.load(folder))


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure(Path(sys.argv[1])))) + "\n")
