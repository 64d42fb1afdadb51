"""The archive: its content, that it equals the plain archiver's, that it appears whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dlrm_factory.tools.archive.sealing as sealing
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.archive.staging import archiver_command, stage

MANIFEST = "MAR-INF/MANIFEST.json"


@pytest.fixture(scope="module")
def archived(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "dlrm.mar"
    archive_model(checkpoint, path)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def model_of(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(contents(path)[MANIFEST])["model"]
    return found


def test_an_archive_holds_code_weights_settings_and_no_pickle(archived: Path) -> None:
    files = contents(archived)
    assert {
        MANIFEST,
        "declaration.yaml",
        "dense.safetensors",
        "dlrm_factory/scorer.py",
        "dlrm_handler.py",
        "handler/__init__.py",
        "model-config.yaml",
        "tables.bin",
    } <= files.keys()
    assert {Path(name).suffix for name in files} <= {
        ".py",
        ".typed",
        ".yaml",
        ".json",
        ".safetensors",
        ".bin",
    }
    for name, data in files.items():
        # A torch.save file is a zip, a pickle of protocol 2 and later starts with \x80 and the protocol.
        assert not data.startswith((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
    assert model_of(archived) == {
        "modelName": "dlrm",
        "handler": "dlrm_handler.py",
        "modelVersion": "1.0",
        "configFile": "model-config.yaml",
    }


def test_the_plain_archiver_makes_the_same_content(archived: Path, checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "staged")
    (tmp_path / "store").mkdir()
    (tmp_path / "tmp").mkdir()
    command = archiver_command(
        tmp_path / "staged", model_name="dlrm", version="1.0", export_path=tmp_path / "store"
    )
    program, *words = shlex.split(command)
    subprocess.run(
        [str(Path(sys.executable).with_name(program)), *words],
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        timeout=120,
    )
    ours, theirs = contents(archived), contents(tmp_path / "store/dlrm.mar")
    assert model_of(archived) == model_of(tmp_path / "store/dlrm.mar")
    del ours[MANIFEST], theirs[MANIFEST]
    assert ours == theirs


def test_a_folder_has_the_same_content(archived: Path, checkpoint: Path, tmp_path: Path) -> None:
    archive_model(checkpoint, tmp_path / "dlrm", archive_format="directory")
    expected = contents(archived)
    for name, data in expected.items():
        if name != MANIFEST:
            assert (tmp_path / "dlrm" / name).read_bytes() == data
    assert read_archive_listing(tmp_path / "dlrm").files.keys() == expected.keys()
    assert (tmp_path / "dlrm").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_archive_can_be_made_again_from_a_folder(archived: Path, checkpoint: Path, tmp_path: Path) -> None:
    archive_model(checkpoint, tmp_path / "folder", archive_format="directory")
    archive_model(tmp_path / "folder", tmp_path / "again.mar", version="2.0")
    ours, again = contents(archived), contents(tmp_path / "again.mar")
    del ours[MANIFEST], again[MANIFEST]
    assert again == ours
    assert model_of(tmp_path / "again.mar")["modelVersion"] == "2.0"
    # The links were taken out of the working folder, not out of the source.
    assert (tmp_path / "folder/tables.bin").is_file()


def test_equal_inputs_give_equal_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a.mar", "b.mar"):
        archive_model(checkpoint, tmp_path / name)
    assert (tmp_path / "a.mar").read_bytes() == (tmp_path / "b.mar").read_bytes()
    assert json.loads(contents(tmp_path / "a.mar")[MANIFEST])["createdOn"] == "14/11/2023 22:13:20"


def test_tables_are_stored_and_code_is_deflated(archived: Path) -> None:
    with zipfile.ZipFile(archived) as archive:
        assert archive.getinfo("tables.bin").compress_type == zipfile.ZIP_STORED
        assert archive.getinfo("dlrm_handler.py").compress_type == zipfile.ZIP_DEFLATED
        # Java's ZipInputStream refuses a stored entry whose size only follows it (flag 8).
        assert not any(entry.flag_bits & 0x8 for entry in archive.infolist())


def test_an_archive_is_replaced_only_on_request(archived: Path, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "dlrm.mar"
    path.write_bytes(b"old")
    with pytest.raises(ArchiveError, match="exists; give --force to replace it"):
        archive_model(checkpoint, path)
    assert path.read_bytes() == b"old"
    archive_model(checkpoint, path, force=True)
    assert contents(path).keys() == contents(archived).keys()
    assert [each.name for each in tmp_path.iterdir()] == ["dlrm.mar"]


def test_a_failure_keeps_the_old_archive_and_leaves_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dlrm.mar"
    path.write_bytes(b"old")

    def interrupt(done: int, total: int) -> None:
        if any(tmp_path.glob(".*.zip")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive_model(checkpoint, path, force=True, progress=interrupt)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["dlrm.mar"]

    monkeypatch.setattr(sealing, "_zip", _full)
    with pytest.raises(ArchiveError, match=r"dlrm\.mar: cannot be written: No space left on device"):
        archive_model(checkpoint, path, force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["dlrm.mar"]


def _full(*args: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_wrong_name_or_place_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"must end in \.mar"):
        archive_model(checkpoint, tmp_path / "dlrm.zip")
    (tmp_path / "folder.mar").mkdir()
    with pytest.raises(ArchiveError, match="is a folder"):
        archive_model(checkpoint, tmp_path / "folder.mar", force=True)
    for name in ("", "a/b", "ümlaut", "-x"):
        with pytest.raises(ArchiveError, match="model name"):
            archive_model(checkpoint, tmp_path / "dlrm.mar", model_name=name)
    with pytest.raises(ArchiveError, match="version"):
        archive_model(checkpoint, tmp_path / "dlrm.mar", version="1/0")
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match="cannot be written"):
        archive_model(checkpoint, tmp_path / "file/dlrm.mar")


def test_a_model_store_that_does_not_exist_is_made(checkpoint: Path, tmp_path: Path) -> None:
    archive_model(checkpoint, tmp_path / "new/store/dlrm.mar")
    assert read_archive_listing(tmp_path / "new/store/dlrm.mar").is_dlrm
    shutil.rmtree(tmp_path / "new")
