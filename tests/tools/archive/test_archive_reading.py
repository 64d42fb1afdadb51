"""Checks of an archive before a server is given it."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import dlrm_factory.tools.archive.listing as listing
import dlrm_factory.tools.archive.reading as reading
import dlrm_factory.tools.archive.zip_listing as zip_listing
from dlrm_factory.config import tiny
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.archive.reading import read_archive_declaration, unpacked_weights
from dlrm_factory.tools.archive.sealing import archive_model

GOOD = json.dumps({"model": {"modelName": "m", "modelVersion": "1.0", "handler": "h.py"}})
Write = Callable[[zipfile.ZipFile], None]


def made(path: Path, write: Write, manifest: str = GOOD) -> Path:
    """A `.mar` with a manifest, a handler, and what ``write`` adds."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", manifest)
        archive.writestr("h.py", "class H: ...\n")
        write(archive)
    return path


def nothing(archive: zipfile.ZipFile) -> None:
    """Add nothing."""


def test_our_archive_is_listed(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "shop.mar"
    archive_model(checkpoint, path, model_name="shop", version="3")
    listing = read_archive_listing(path)
    assert (listing.model_name, listing.version, listing.handler) == ("shop", "3", "dlrm_handler.py")
    assert listing.is_dlrm
    assert listing.files["tables.bin"] > 1000
    assert listing.total_bytes == sum(listing.files.values()) > listing.files["tables.bin"]
    assert read_archive_declaration(path) == tiny()


def test_a_foreign_archive_is_listed_too(tmp_path: Path) -> None:
    path = made(tmp_path / "m.mar", nothing)
    assert not read_archive_listing(path).is_dlrm
    with pytest.raises(ArchiveError, match=r"has no declaration\.yaml"):
        read_archive_declaration(path)
    builtin = json.dumps({"model": {"modelName": "m", "handler": "image_classifier"}})
    assert read_archive_listing(made(tmp_path / "b.mar", nothing, builtin)).handler == "image_classifier"


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../evil", "..\\evil", "a/\0b"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, "evil")

    with pytest.raises(ArchiveError, match="would be unpacked outside its folder"):
        read_archive_listing(made(tmp_path / "m.mar", write))


def test_a_link_is_refused(tmp_path: Path) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("tables.bin")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")

    with pytest.raises(ArchiveError, match="is not a plain file"):
        read_archive_listing(made(tmp_path / "m.mar", write))


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("h.py", "class Other: ...\n")

    with pytest.raises(ArchiveError, match=r'holds "h\.py" twice'):
        read_archive_listing(made(tmp_path / "m.mar", write))


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("big.py", b"#" * 2000))
    monkeypatch.setattr(listing, "_MAX_TEXT", 1000)
    with pytest.raises(ArchiveError, match=r'"big\.py" is 2\.0 KB; at most 1\.0 KB'):
        read_archive_listing(path)
    monkeypatch.setattr(listing, "_MAX_BYTES", 1500)
    with pytest.raises(ArchiveError, match=r"says it takes 2\.1 KB unpacked"):
        read_archive_listing(path)
    monkeypatch.setattr(listing, "_MAX_ENTRIES", 2)
    with pytest.raises(ArchiveError, match="holds 3 files; at most 2"):
        read_archive_listing(path)


def test_a_size_that_no_compression_reaches_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("tables.bin", b"x" * 100))
    data = bytearray(path.read_bytes())
    # The uncompressed size in the last central directory entry: 24 bytes after its signature.
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r'says "tables\.bin" takes 2\.1 GB, more than it can hold'):
        read_archive_listing(path)


BROKEN = [
    ("not json", "is not JSON"),
    ("[]", "names no model and handler"),
    ('{"model": {"modelName": "m"}}', "names no model and handler"),
    ('{"model": {"handler": "h.py"}}', "names no model and handler"),
    ('{"model": {"modelName": "m", "handler": "other.py"}}', 'handler "other.py", which is not in it'),
]


@pytest.mark.parametrize(("manifest", "message"), BROKEN)
def test_a_broken_manifest_is_one_message(tmp_path: Path, manifest: str, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        read_archive_listing(made(tmp_path / "m.mar", nothing, manifest))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="there is no such archive"):
        read_archive_listing(tmp_path / "none.mar")
    (tmp_path / "text.mar").write_text("hello")
    with pytest.raises(ArchiveError, match="is not an archive, or only a part of one"):
        read_archive_listing(tmp_path / "text.mar")
    with zipfile.ZipFile(tmp_path / "plain.mar", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ArchiveError, match=r"has no MAR-INF/MANIFEST\.json"):
        read_archive_listing(tmp_path / "plain.mar")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match=r"has no MAR-INF/MANIFEST\.json"):
        read_archive_listing(tmp_path / "folder")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused(checkpoint: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "dlrm.mar"
    archive_model(checkpoint, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ArchiveError, match=r"is not an archive, or only a part of one|is damaged"):
        read_archive_listing(path)


def test_a_damaged_manifest_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "dlrm.mar"
    archive_model(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("MAR-INF/MANIFEST.json").header_offset
    data = bytearray(path.read_bytes())
    data[start + 60 : start + 80] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="is damaged"):
        read_archive_listing(path)


def test_a_wrong_declaration_inside_is_one_message(tmp_path: Path) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("declaration.yaml", "tables: 3"))
    with pytest.raises(ArchiveError, match=r"declaration\.yaml: \$\."):
        read_archive_declaration(path)


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "m.mar", "w").close()
    with pytest.raises(ArchiveError, match=r"has no MAR-INF/MANIFEST\.json"):
        read_archive_listing(tmp_path / "m.mar")


def test_a_bomb_within_what_deflate_can_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr(deflated("tables.bin"), bytes(30 << 20))

    path = made(tmp_path / "m.mar", write)
    assert read_archive_listing(path).total_bytes > 30 << 20
    monkeypatch.setattr(zip_listing, "_FREE_GROWTH", 1 << 20)
    with pytest.raises(
        ArchiveError, match=r"has 31\.\d KB but says it takes 31\.5 MB unpacked; .* fill a disk"
    ):
        read_archive_listing(made(tmp_path / "m.mar", write))


def deflated(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def last_entry(path: Path, offset: int, data: bytes) -> Path:
    """The archive with bytes of its last directory entry replaced."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + offset
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def test_files_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("a.bin", b"x" * 100))
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0].header_offset
    with pytest.raises(ArchiveError, match="runs into the file behind it"):
        read_archive_listing(last_entry(path, 42, first.to_bytes(4, "little")))


def test_a_stored_file_of_two_sizes_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("tables.bin", b"x" * 100))
    with pytest.raises(ArchiveError, match=r'says "tables\.bin" takes 101 B, more than it can hold'):
        read_archive_listing(last_entry(path, 24, (101).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (8, b"\x01", 'holds "a.bin" encrypted'),
        (10, b"\x0c", "compressed in a way that TorchServe cannot read"),
    ],
)
def test_what_torchserve_cannot_unpack_is_refused(
    tmp_path: Path, offset: int, data: bytes, message: str
) -> None:
    path = made(tmp_path / "m.mar", lambda archive: archive.writestr("a.bin", b"x" * 100))
    with pytest.raises(ArchiveError, match=message):
        read_archive_listing(last_entry(path, offset, data))


@pytest.mark.parametrize("field", [32, 40])
def test_a_directory_that_lies_in_zip64_is_refused(tmp_path: Path, field: int) -> None:
    path = made(tmp_path / "m.mar", nothing)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x05\x06")
    end64 = bytearray(b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(44))
    end64[field : field + 8] = (2**40).to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + at.to_bytes(8, "little") + (1).to_bytes(4, "little")
    content[at + 8 : at + 20] = b"\xff" * 12
    path.write_bytes(content[:at] + end64 + locator + content[at:])
    with pytest.raises(ArchiveError, match="at most 10000 are allowed, in a list of 67"):
        read_archive_listing(path)


def test_weights_with_a_wrong_checksum_are_not_unpacked(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "dlrm.mar"
    archive_model(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("tables.bin").header_offset
    data = bytearray(path.read_bytes())
    data[start + 2000] ^= 1
    path.write_bytes(data)
    with (
        pytest.raises(ArchiveError, match=r'its "tables\.bin" is damaged: Bad CRC-32'),
        unpacked_weights(path),
    ):
        pass


def test_weights_that_the_disk_cannot_hold_are_not_unpacked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_model(checkpoint, tmp_path / "dlrm.mar")
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with (
        pytest.raises(ArchiveError, match=r"take \d.* unpacked, and .* has 1\.0 KB; set TMPDIR"),
        unpacked_weights(tmp_path / "dlrm.mar"),
    ):
        pass


def test_a_folder_with_a_link_that_leads_out_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dlrm"
    archive_model(checkpoint, folder, archive_format="directory")
    (folder / "inside.bin").symlink_to("tables.bin")
    assert read_archive_listing(folder).is_dlrm
    (tmp_path / "secret").write_text("secret")
    (folder / "dense.safetensors").unlink()
    (folder / "dense.safetensors").symlink_to("../secret")
    for read in (lambda: read_archive_listing(folder), lambda: unpacked_weights(folder).__enter__()):
        with pytest.raises(
            ArchiveError, match=r'its "dense\.safetensors" is a link that leads out of the folder'
        ):
            read()


def test_a_manifest_nested_too_deep_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not JSON"):
        read_archive_listing(made(tmp_path / "m.mar", nothing, "[" * 100_000))
