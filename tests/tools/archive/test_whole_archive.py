"""Every file of an archive counts: a flipped byte, a missing and an added file are found, code and settings too."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.depth import examples
from typer.testing import CliRunner

from dlrm_factory.errors import DLRMError, ServingError, WeightsError
from dlrm_factory.tools.archive.reading import check_archive, unpacked_weights
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.archive.staging import archiver_command, stage
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.server.store import find_models
from dlrm_factory.weights.sealed import SealedWeights

FLIPS = examples(25)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "dlrm"
    archive_model(checkpoint, path, archive_format="directory")
    return path


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "dlrm.mar"
    archive_model(checkpoint, path)
    return path


def proves(path: Path) -> bool:
    """Verify as `dlrm verify` does, but for the scores."""
    try:
        with unpacked_weights(path) as unpacked:
            check_archive(path, unpacked)
            SealedWeights(unpacked, again=True)
    except DLRMError:
        return False
    return True


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def is_permission(data: bytes, at: int) -> bool:
    """Permissions in a zip's list of files, which TorchServe and Python's zipfile leave alone."""
    entry = data.rfind(b"PK\x01\x02", 0, at + 1)
    return entry >= 0 and 40 <= at - entry < 42


def contents_of(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True], ids=["code", "weights"])
def test_a_flipped_byte_of_a_mar_is_found(packed: Path, tmp_path: Path, weights: bool) -> None:
    data = packed.read_bytes()
    with zipfile.ZipFile(packed) as archive:
        tables = archive.getinfo("tables.bin")
    inside = range(tables.header_offset, tables.header_offset + 30 + len("tables.bin") + tables.file_size)
    places = [at for at in range(len(data)) if (at in inside) == weights and not is_permission(data, at)]
    rng = random.Random("flips")
    assert proves(packed)
    for at in rng.sample(places, FLIPS):
        flipped = bytearray(data)
        flipped[at] ^= rng.randrange(1, 256)
        (tmp_path / "dlrm.mar").write_bytes(flipped)
        # The last bits of a deflated file may mean nothing: then all that is read is the same.
        found = not proves(tmp_path / "dlrm.mar")
        assert found or contents_of(tmp_path / "dlrm.mar") == contents_of(packed), f"byte {at}"


def test_a_flipped_byte_of_a_folder_is_found(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    rng = random.Random("flips")
    # Names, version and date of a folder's manifest have nothing to be checked against.
    files = [name for name in files_of(copy) if (copy / name).stat().st_size and "MANIFEST" not in name]
    for name in rng.sample(files, FLIPS):
        data = (copy / name).read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        (copy / name).write_bytes(flipped)
        assert not proves(copy), name
        (copy / name).write_bytes(data)
    assert proves(copy)


def test_the_command_names_the_file(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    code = bytearray((copy / "dlrm_factory/requests/scoring.py").read_bytes())
    code[5] ^= 1
    (copy / "dlrm_factory/requests/scoring.py").write_bytes(code)
    done = CliRunner().invoke(app, ["verify", str(copy)])
    assert done.exit_code != 0
    assert isinstance(done.exception, WeightsError)
    assert "dlrm_factory/requests/scoring.py: is damaged" in str(done.exception)


def test_each_missing_file_is_found_by_name(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    for name in files_of(copy):
        (copy / name).rename(tmp_path / "away")
        if "MANIFEST" in name:  # the folder is then as it was staged; no server takes it
            with pytest.raises(ServingError, match="is not a model"):
                find_models(tmp_path, ["dlrm"])
        else:
            with pytest.raises(WeightsError, match=f"{name}: there is no such"):
                SealedWeights(copy)
            with pytest.raises(ServingError, match=name):
                find_models(tmp_path, ["dlrm"])
        (tmp_path / "away").rename(copy / name)


@pytest.mark.parametrize(
    "name",
    [
        "sitecustomize.py",
        "handler/numpy.so",
        "notes.txt",
        "MAR-INF/x",
        "handler/__pycache__/gone.cpython-311.pyc",
    ],
)
def test_an_added_file_is_found_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(WeightsError, match=rf"{name}: is not in seal\.json"):
        check_archive(copy, copy)


def test_compiled_code_of_a_served_folder_is_no_stranger(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    (copy / "dlrm_factory/requests/__pycache__").mkdir()
    (copy / "dlrm_factory/requests/__pycache__/service.cpython-311.pyc").write_bytes(b"x")
    assert proves(copy)
    find_models(tmp_path, ["dlrm"])


def test_a_seal_of_before_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))
    text = (copy / "seal.json").read_text()
    (copy / "seal.json").write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(WeightsError, match=r"of an older version .* make the archive again"):
        SealedWeights(copy)


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_what_the_plain_archiver_makes_verifies(
    checkpoint: Path, tmp_path: Path, archive_format: str
) -> None:
    for name in ("store", "tmp"):
        (tmp_path / name).mkdir()
    stage(checkpoint, tmp_path / "staged")
    assert proves(tmp_path / "staged")
    command = archiver_command(
        tmp_path / "staged", model_name="dlrm", version="1.0", export_path=tmp_path / "store"
    ).replace("zip-store", archive_format)
    program, *words = shlex.split(command)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run(
        [str(Path(sys.executable).with_name(program)), *words], check=True, env=environment, timeout=120
    )
    (made,) = (tmp_path / "store").iterdir()
    assert proves(made)
    find_models(tmp_path / "store", [made.name])


def add_to_zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "added.py"])
def test_serve_refuses_a_mar_before_it_is_unpacked(packed: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(packed, tmp_path / "dlrm.mar")
    add_to_zip(tmp_path / "dlrm.mar", name)
    with pytest.raises(ServingError, match=name):
        find_models(tmp_path, ["dlrm=dlrm.mar"])


def test_serve_refuses_heads_that_say_other_than_the_directory(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    name = b"dlrm_factory/requests/service.py"
    at = data.index(name)
    other = b"handler/../../x.py".rjust(len(name), b"y")
    (tmp_path / "dlrm.mar").write_bytes(data[:at] + other + data[at + len(name) :])
    with pytest.raises(ServingError, match=r"dlrm_factory/requests/service\.py"):
        find_models(tmp_path, ["dlrm=dlrm.mar"])


def link(kind: bytes) -> Callable[[], tarfile.TarInfo]:
    def made() -> tarfile.TarInfo:
        info = tarfile.TarInfo("dlrm/x")
        info.type, info.linkname = kind, "/etc/passwd"
        return info

    return made


@pytest.mark.parametrize(
    "make",
    [
        *map(link, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)),
        lambda: tarfile.TarInfo("dlrm/../../x"),
        lambda: tarfile.TarInfo("/x"),
    ],
    ids=["link", "hard link", "pipe", "device", "dots", "absolute"],
)
def test_serve_refuses_a_tar_before_it_is_unpacked(
    tmp_path: Path, make: Callable[[], tarfile.TarInfo]
) -> None:
    with tarfile.open(tmp_path / "dlrm.tar.gz", "w:gz") as archive:
        archive.addfile(make())
    with pytest.raises(ServingError, match="do not use it"):
        find_models(tmp_path, ["dlrm=dlrm.tar.gz"])


RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import dlrm_handler, dlrm_factory.requests.service
print(dlrm_factory.requests.service.__file__)
"""


@pytest.mark.slow
def test_a_worker_runs_the_archives_code_or_none(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "dlrm"))

    def run() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", RUN, str(copy)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    assert run().stdout.strip() == str(copy / "dlrm_factory/requests/service.py")
    (copy / "dlrm_factory/requests/service.py").unlink()
    assert (
        f"RuntimeError: the archive in {copy} lacks its module dlrm_factory.requests.service" in run().stderr
    )
    shutil.rmtree(copy / "dlrm_factory")
    assert f"RuntimeError: the archive in {copy} lacks its module dlrm_factory" in run().stderr
