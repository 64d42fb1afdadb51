"""A version that is brought to a server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrm_factory.config import dump_declaration, tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout.checking import check_body_limit, check_group
from dlrm_factory.tools.rollout.versions import NewVersion, new_folder, open_version
from dlrm_factory.tools.server import RunDir


def write_archive(path: Path, config: str = "minWorkers: 1\n") -> Path:
    manifest = {"model": {"modelName": "x", "modelVersion": "2.0", "handler": "h.py"}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("h.py", "class H: ...\n")
        archive.writestr("declaration.yaml", dump_declaration(tiny()))
        archive.writestr("model-config.yaml", config)
    return path


@pytest.fixture
def state(tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "store").mkdir()
    return SimpleNamespace(model_store=str(tmp_path / "store"), tmp=str(tmp_path))


def test_an_archive_of_the_store_or_of_anywhere_is_opened(
    tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "store" / "new.mar")
    write_archive(tmp_path / "else.mar")
    for name in ("new.mar", "else.mar", str(tmp_path / "else.mar")):
        found = open_version(Path(name), "dlrm", state)
        assert (found.version, found.path.name) == ("2.0", Path(name).name)
        assert found.declaration == tiny()
    with pytest.raises(ServingError, match=r'no archive ".*older\.mar"'):
        open_version(Path("older.mar"), "dlrm", state)
    (tmp_path / "half.mar").write_bytes((tmp_path / "else.mar").read_bytes()[:100])
    with pytest.raises(ServingError, match="not a zip file"):
        open_version(Path("half.mar"), "dlrm", state)


def test_an_archive_without_a_declaration_is_refused(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "other.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "MAR-INF/MANIFEST.json",
            json.dumps({"model": {"modelName": "x", "modelVersion": "1", "handler": "h.py"}}),
        )
        archive.writestr("h.py", "class H: ...\n")
    with pytest.raises(ServingError, match=r"cannot be rolled out: .*was not made by `dlrm archive`"):
        open_version(path, "dlrm", state)


def new_version(path: Path) -> NewVersion:
    return NewVersion(SimpleNamespace(path=path), "2.0", tiny())


def test_other_ranks_or_several_hosts_are_refused(tmp_path: Path) -> None:
    group = "parallelType: pp\ntorchrun:\n  nproc-per-node: 2\n"
    old, grouped = write_archive(tmp_path / "old.mar"), write_archive(tmp_path / "g.mar", group)
    check_group(new_version(old), old)
    check_group(new_version(grouped), grouped)
    check_group(new_version(old), tmp_path / "gone.mar")
    with pytest.raises(ServingError, match="has 2 ranks a worker, and the version that is served has 1"):
        check_group(new_version(grouped), old)
    hosts = write_archive(tmp_path / "h.mar", f"{group}hosts: 2\n")
    with pytest.raises(ServingError, match="is served by 2 hosts, which a rollout cannot bring"):
        check_group(new_version(hosts), old)


def test_larger_bodies_than_the_server_takes_are_refused(tmp_path: Path) -> None:
    run_dir = RunDir.at(tmp_path / "run")
    run_dir.prepare()
    run_dir.config_file.write_text("max_request_size=1000\n")
    with pytest.raises(ServingError, match=r"the server was started with a limit of 1,000"):
        check_body_limit(new_version(tmp_path), run_dir)
    run_dir.config_file.write_text("max_request_size=100000000\n")
    check_body_limit(new_version(tmp_path), run_dir)


def test_a_new_folder_has_no_archives_name(state: Any) -> None:
    first, second = new_folder(state), new_folder(state)
    assert first != second
    assert first.name.startswith("rollout-")
