"""The files that a zip says it holds, checked before any of them is read."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import ArchiveError

__all__ = ["DAMAGED", "list_zip"]

# What zipfile raises for a damaged archive: its own error, and whatever strange numbers lead it to.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)

_MAX_RATIO = 1100  # deflate makes nothing smaller than a thousandth
_MAX_DIRECTORY = 64 << 20  # the zip's list of its files
# Code deflates to a fifth, tables of weights hardly at all; a small archive may unpack to some zeros.
_MAX_GROWTH, _FREE_GROWTH = 200, 256 << 20
_LOCAL_HEADER = 30  # the least bytes before a file's data
_END_BYTES = 66_000  # the directory's end, with the longest comment
_END_OF_DIRECTORY, _END_OF_DIRECTORY_64 = b"PK\x05\x06", b"PK\x06\x06"


def list_zip(path: Path, *, most_files: int) -> dict[str, int]:
    """Bytes, unpacked, of each file of the zip at ``path``.

    ArchiveError if it is damaged, would write outside its folder, or is made to fill memory or disk.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: there is no such archive; make one with `dlrm archive`")
    if not zipfile.is_zipfile(path):
        raise ArchiveError(
            f"{path}: is not an archive, or only a part of one; make it again with `dlrm archive`"
        )
    _check_directory(path, most_files)
    try:
        with zipfile.ZipFile(path) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except DAMAGED as error:
        raise ArchiveError(f"{path}: is damaged: {error}") from None
    _check_overlaps(path, entries, end)
    files: dict[str, int] = {}
    for entry in entries:
        _check_entry(path, entry)
        if entry.filename in files:
            raise ArchiveError(f'{path}: holds "{entry.filename}" twice')
        if not entry.is_dir():
            files[entry.filename] = entry.file_size
    packed = path.stat().st_size
    if sum(files.values()) > _MAX_GROWTH * packed + _FREE_GROWTH:
        raise ArchiveError(
            f"{path}: has {format_bytes(packed)} but says it takes {format_bytes(sum(files.values()))} unpacked; "
            "it is made to fill a disk; do not use it"
        )
    return files


def _check_directory(path: Path, most_files: int) -> None:
    """ArchiveError if its directory is too long to be read into memory. Says nothing of other damage."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_BYTES))
        tail = file.read()
    at = tail.rfind(_END_OF_DIRECTORY)
    if at >= 0 and len(tail) >= at + 20:
        entries, length = struct.unpack_from("<HI", tail, at + 10)
        in_zip64 = entries == 0xFFFF or length == 0xFFFFFFFF
        if in_zip64 and (found := tail.rfind(_END_OF_DIRECTORY_64, 0, at)) >= 0 and found + 56 <= len(tail):
            entries, length = struct.unpack_from("<QQ", tail, found + 32)
        if entries > most_files or length > _MAX_DIRECTORY:
            raise ArchiveError(
                f"{path}: holds {entries} files; at most {most_files} are allowed, "
                f"in a list of {format_bytes(_MAX_DIRECTORY)}"
            )


def _check_overlaps(path: Path, entries: list[zipfile.ZipInfo], end: int) -> None:
    """ArchiveError if files share bytes of the archive: so a few bytes would unpack to any number of files."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    limits = [*(entry.header_offset for entry in ordered[1:]), end]
    for entry, limit in zip(ordered, limits, strict=False):  # an empty archive has but its end
        if entry.header_offset < 0 or entry.header_offset + _LOCAL_HEADER + entry.compress_size > limit:
            raise ArchiveError(
                f'{path}: its "{entry.filename}" runs into the file behind it; it is damaged, do not use it'
            )


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ArchiveError(
            f'{path}: holds "{name}", which would be unpacked outside its folder; do not use it'
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f'{path}: holds "{name}", which is not a plain file; do not use it')
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f'{path}: holds "{name}" compressed in a way that TorchServe cannot read')
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        raise ArchiveError(
            f'{path}: says "{name}" takes {format_bytes(entry.file_size)}, more than it can hold'
        )
    if entry.file_size > _MAX_RATIO * entry.compress_size:
        raise ArchiveError(
            f'{path}: says "{name}" takes {format_bytes(entry.file_size)}, more than it can hold'
        )
    if entry.flag_bits & 0x1:
        raise ArchiveError(f'{path}: holds "{name}" encrypted, which TorchServe cannot read')
