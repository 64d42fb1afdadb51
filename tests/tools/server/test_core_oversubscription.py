"""The warning when workers have more threads than there are cores."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dlrm_factory.config import ServingOptions, dump_declaration, tiny
from dlrm_factory.tools.server.scaling import core_oversubscription


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    declaration = msgspec.structs.replace(tiny(), serving=ServingOptions(threads=2, compile="off"))
    (tmp_path / "declaration.yaml").write_text(dump_declaration(declaration))
    (tmp_path / "handler.py").write_text("")
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(
        '{"model": {"modelName": "dlrm", "handler": "handler.py"}}'
    )
    return tmp_path


def test_as_many_threads_as_cores_are_fine(archive: Path) -> None:
    assert core_oversubscription(archive, 2, cores=4) is None


def test_more_threads_than_cores_are_told(archive: Path) -> None:
    assert core_oversubscription(archive, 3, cores=4) == (
        "3 workers of 2 threads share 4 cores: no more requests are answered than by 2, and each waits longer"
    )
    assert core_oversubscription(archive, 1, cores=1) == (
        "1 worker of 2 threads share 1 core: no more requests are answered than by 1, and each waits longer"
    )


def test_each_rank_has_its_threads(archive: Path) -> None:
    (archive / "model-config.yaml").write_text("parallelType: pp\ntorchrun: {nproc-per-node: 3}\n")
    assert core_oversubscription(archive, 1, cores=6) is None
    assert core_oversubscription(archive, 1, cores=5) == (
        "1 worker of 6 threads share 5 cores: no more requests are answered than by 1, and each waits longer"
    )


def test_other_archives_say_nothing(tmp_path: Path) -> None:
    assert core_oversubscription(tmp_path, 99, cores=1) is None
