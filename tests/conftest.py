"""Host cache, depth, order and marks of all tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support.depth import DEPTHS, examples
from xdist.scheduler import LoadFileScheduling

TESTS = Path(__file__).parent

# Nearly all that imports make stays: collections meanwhile look at it again and again, a fifth of the time.
gc.disable()

# Files are run in this order, then the others: what takes minutes must not be begun last, on one core.
FIRST = (
    "integration/test_readme.py",
    "compiled/test_compile.py",
    "integration/test_tutorial.py",
    "integration/test_bench_server.py",
    "tools/training/test_ranks.py",
    "integration",
    "compiled",
)
# Files with the fixture `tiny_server`.
ASK_ONE_SERVER = (
    "integration/test_bodies.py",
    "integration/test_request_kinds.py",
    "integration/test_stock_clients.py",
)
# What only a test with the mark may start, known by a word of its command.
NEEDS_MARK = {
    "dlrm_factory.compiled.build": "compiler",
    "org.pytorch.serve": "integration",
    "torch.distributed.run": "multiprocess",
}


@pytest.fixture(scope="session", autouse=True)
def host_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run alone, shared by its processes: no test finds what an earlier run compiled or checked."""
    with pytest.MonkeyPatch.context() as patch:
        if "DLRM_CACHE_DIR" not in os.environ:
            base = tmp_path_factory.getbasetemp()
            run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
            patch.setenv("DLRM_CACHE_DIR", str(run / "host-cache"))
        yield Path(os.environ["DLRM_CACHE_DIR"])


# Java compiles what it runs often a second time, at length: servers of tests end before that is paid back.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")

# A machine that does other work besides is no fault of a test: no example has a time limit.
for _name in DEPTHS:
    settings.register_profile(
        _name, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples(100)
    )
settings.load_profile(os.environ.get("DLRM_TEST_DEPTH", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, as `FIRST` says."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(TESTS).as_posix()
        return next((i for i, first in enumerate(FIRST) if name.startswith(first)), len(FIRST))

    items.sort(key=place)


class FileScheduling(LoadFileScheduling):
    """Files of tests, each in one process; those that ask one server in the same."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "integration/conftest.py" if file.endswith(ASK_ONE_SERVER) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    return FileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Take what was imported out of the collector's sight."""
    gc.enable()
    gc.freeze()


_started: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        command = str(arguments[1])
        _started.extend(mark for word, mark in NEEDS_MARK.items() if word in command)


sys.addaudithook(_note)


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts TorchServe or the compiler without the mark by which `scripts/test --quick` leaves it."""
    yield
    missing = {mark for mark in _started if request.node.get_closest_marker(mark) is None}
    assert not missing, f"the test needs the marks {sorted(missing)}"


def pytest_runtest_logfinish() -> None:
    """Forget what the test's fixtures started, whether they came up or not."""
    _started.clear()
