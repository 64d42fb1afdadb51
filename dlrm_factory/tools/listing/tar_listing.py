"""The files of a gzipped tar, as torch-model-archiver's format tgz writes it: all below one folder."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import ArchiveError

__all__ = ["TAR_SUFFIX", "list_tar", "tar_members"]

TAR_SUFFIX = ".tar.gz"
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)


def list_tar(path: Path, *, most_files: int, most_bytes: int) -> dict[str, int]:
    """Bytes of each file of the tar at ``path``, named as TorchServe unpacks it. All of it is read.

    ArchiveError if it is damaged, would write outside its folder, or is made to fill memory or disk.
    """
    files: dict[str, int] = {}
    for name, member, _ in tar_members(path):
        if name in files:
            raise ArchiveError(f'{path}: holds "{name}" twice')
        files[name] = member.size
        if len(files) > most_files:
            raise ArchiveError(f"{path}: holds over {most_files} files; do not use it")
        if sum(files.values()) > most_bytes:
            raise ArchiveError(f"{path}: takes over {format_bytes(most_bytes)} unpacked; do not use it")
    return files


def tar_members(path: Path) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Each file with the name that TorchServe gives it, in order; folders are left out. ArchiveError as above."""
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                inside = _checked_name(path, member)
                if not member.isdir():
                    yield inside, member, archive
    except _BROKEN as error:
        raise ArchiveError(f"{path}: is damaged: {error}") from None


def _checked_name(path: Path, member: tarfile.TarInfo) -> str:
    name = member.name
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or "" in parts or "." in parts:
        raise ArchiveError(
            f'{path}: holds "{name}", which would be unpacked outside its folder; do not use it'
        )
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise ArchiveError(f'{path}: holds "{name}", which is not a plain file; do not use it')
    return name.partition("/")[2] or name
