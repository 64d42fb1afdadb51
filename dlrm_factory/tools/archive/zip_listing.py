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

__all__ = [
    "DAMAGED",
    "check_directory",
    "list_zip",
]

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
_LOCAL = struct.Struct("<4s5H3I2H")  # a file's head
_LONG = struct.Struct("<2H2Q")  # its sizes, where they are long
_END = struct.Struct("<4s4H2IH")
_SIZES_BEHIND = 0x8
_END_OF_DIRECTORY, _END_OF_DIRECTORY_64 = b"PK\x05\x06", b"PK\x06\x06"


def list_zip(path: Path, *, max_files: int) -> dict[str, int]:
    """Bytes, unpacked, of each file of the zip at ``path``.

    ArchiveError if it is damaged, would write outside its folder, or is made to fill memory or disk.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: there is no such archive; make one with `dlrm archive`")
    if not zipfile.is_zipfile(path):
        raise ArchiveError(
            f"{path}: is not an archive, or only a part of one; make it again with `dlrm archive`"
        )
    _check_directory(path, max_files)
    try:
        with zipfile.ZipFile(path) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except DAMAGED as error:
        raise ArchiveError(f"{path}: is damaged: {error}") from None
    _check_overlaps(path, entries, end)
    for entry in entries:
        _check_entry(path, entry)
    _check_heads(path, entries, end)
    files: dict[str, int] = {}
    for entry in entries:
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


def _check_directory(path: Path, max_files: int) -> None:
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
        if entries > max_files or length > _MAX_DIRECTORY:
            raise ArchiveError(
                f"{path}: holds {entries} files; at most {max_files} are allowed, "
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


def _check_heads(path: Path, entries: list[zipfile.ZipInfo], end: int) -> None:
    """ArchiveError unless the heads before the files say what the directory says, with nothing in between.

    TorchServe unpacks by the heads, one after another, and never looks at the directory.
    """
    at = 0
    with path.open("rb") as file:
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.flag_bits & _SIZES_BEHIND:
                raise ArchiveError(
                    f'{path}: its "{entry.filename}" has its size behind its data, so it cannot be checked; '
                    "make the archive with `dlrm archive` or torch-model-archiver"
                )
            file.seek(entry.header_offset)
            head = file.read(_LOCAL_HEADER)
            if entry.header_offset != at or len(head) < _LOCAL_HEADER:
                raise ArchiveError(f'{path}: holds bytes that are no file before "{entry.filename}"')
            fields = _LOCAL.unpack(head)
            name, extra = file.read(fields[9]), file.read(fields[10])
            if fields[:9] != _expected_head(entry, long=bool(extra)) or name != _encoded(entry):
                raise ArchiveError(f'{path}: names and sizes of "{entry.filename}" are damaged')
            if extra not in (b"", _LONG.pack(1, 16, entry.file_size, entry.compress_size)):
                raise ArchiveError(f'{path}: has unknown fields with "{entry.filename}"; do not use it')
            at = file.tell() + entry.compress_size
    if entries and at != end:
        raise ArchiveError(f"{path}: holds bytes that are no file before its list of files")


def _expected_head(entry: zipfile.ZipInfo, *, long: bool) -> tuple[object, ...]:
    year, month, day, hour, minute, second = entry.date_time
    sizes = (0xFFFFFFFF, 0xFFFFFFFF) if long else (entry.compress_size, entry.file_size)
    return (
        b"PK\x03\x04",
        entry.extract_version,
        entry.flag_bits,
        entry.compress_type,
        hour << 11 | minute << 5 | second // 2,
        (year - 1980) << 9 | month << 5 | day,
        entry.CRC,
        *sizes,
    )


def _encoded(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def check_directory(path: Path) -> None:
    """ArchiveError if the zip's list of files is not as Python's zipfile, and so torch-model-archiver, writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries, comment, start = archive.infolist(), archive.comment, archive.start_dir
    except DAMAGED as error:
        raise ArchiveError(f"{path}: is damaged: {error}") from None
    for entry in entries:
        plain = (entry.create_version, entry.create_system, entry.volume, entry.internal_attr, entry.reserved)
        if (
            plain != (entry.extract_version, 3, 0, 0, 0)
            or entry.comment
            or entry.external_attr & 0xFFFF
            or (entry.extra and entry.extra[:2] != b"\x01\x00")
        ):
            raise ArchiveError(f'{path}: what its list of files says of "{entry.filename}" is damaged')
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(size - _END.size)
        found = _END.unpack(file.read(_END.size))
    if 0xFFFF in found[3:5] or 0xFFFFFFFF in found[5:7]:
        return  # in zip64, whose own numbers zipfile has used
    count = len(entries)
    length = size - _END.size - start
    if found != (_END_OF_DIRECTORY, 0, 0, count, count, length, start, 0) or comment:
        raise ArchiveError(f"{path}: the end of its list of files is damaged")


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
