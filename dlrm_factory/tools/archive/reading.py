"""An archive's declaration, and its files unpacked to be read by this installation's code."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, format_bytes, parse_declaration
from dlrm_factory.errors import ArchiveError, ConfigError
from dlrm_factory.tools.archive.listing import (
    TAR_SUFFIX,
    ArchiveListing,
    check_listing,
    check_manifest,
    list_folder,
    read_archive_listing,
    read_text,
    tar_members,
)
from dlrm_factory.tools.archive.zip_listing import DAMAGED, check_directory
from dlrm_factory.weights.seal import DECLARATION_FILE, MANIFEST, TABLE_FILE, read_seal

__all__ = ["check_archive", "link_or_copy", "read_archive_declaration", "unpack_archive", "unpacked_weights"]

_BLOCK = 8 << 20


def read_archive_declaration(path: Path) -> DLRMDeclaration:
    """The declaration inside the archive at ``path``. ArchiveError if there is none or it is wrong."""
    listing = read_archive_listing(path)
    if DECLARATION_FILE not in listing.files:
        raise ArchiveError(f"{path}: has no {DECLARATION_FILE}; it was not made by `dlrm archive`")
    try:
        return parse_declaration(read_text(path, DECLARATION_FILE), source=f"{path}: {DECLARATION_FILE}")
    except ConfigError as error:
        raise ArchiveError(str(error)) from None


def check_archive(path: Path, folder: Path) -> None:
    """Hold all of the archive at ``path`` but its files' contents against its seal and torch-model-archiver's ways.

    ArchiveError or WeightsError for a file that was added, or a list of files or a manifest that is damaged. The
    contents are checked when the sealed weights in ``folder``, see `unpacked_weights`, are opened.
    """
    read_seal(folder).check_names(folder)
    if path.is_file() and not path.name.endswith(TAR_SUFFIX):
        check_directory(path)
    if not path.is_dir() or (path / MANIFEST).exists():
        listing = read_archive_listing(path)
        check_listing(listing)
        check_manifest(read_text(path, MANIFEST), f"{path}: {MANIFEST}", listing.files)


@contextlib.contextmanager
def unpacked_weights(path: Path) -> Iterator[Path]:
    """A folder with all files of the archive at ``path``: the archive itself if it is one, else a copy.

    ArchiveError if it is damaged, carries no sealed weights, or this disk has no room for them.
    """
    if path.is_dir() and (path / TABLE_FILE).is_file():
        list_folder(path)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        unpack_archive(path, Path(folder), remedy="set TMPDIR to a larger disk")
        yield Path(folder)


def unpack_archive(path: Path, folder: Path, *, remedy: str) -> None:
    """Write all files of the archive at ``path`` into the empty ``folder``; those of a folder are linked.

    ArchiveError if it is damaged, carries no sealed weights, or the disk has no room for them. ``remedy``: for that.
    """
    listing = read_archive_listing(path)
    if not listing.is_dlrm:
        raise ArchiveError(f"{path}: carries no sealed weights; it was not made by dlrm")
    if path.is_dir():
        for name in listing.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path / name, folder / name)
        return
    _check_room(path, listing.total_bytes, folder, remedy)
    if path.name.endswith(TAR_SUFFIX):
        _extract_tar(path, folder)
    else:
        _extract_zip(listing, folder)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, for table files are large; a copy where the disk cannot link."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _check_room(path: Path, size: int, folder: Path, remedy: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ArchiveError(
            f"{path}: its files take {format_bytes(size)} unpacked, and {folder} has {format_bytes(free)}; "
            f"{remedy}"
        )


def _extract_zip(listing: ArchiveListing, folder: Path) -> None:
    """Write all files. No more is read than the archive's listing says, whatever the data unpacks to."""
    path = listing.path
    with zipfile.ZipFile(path) as archive:
        for name, size in listing.files.items():
            try:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, (folder / name).open("xb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)
                    found = file.tell()
            except DAMAGED as error:
                raise ArchiveError(f'{path}: its "{name}" is damaged: {error}') from None
            if found != size:
                raise ArchiveError(f'{path}: its "{name}" is damaged: it is shorter than the listing says')


def _extract_tar(path: Path, folder: Path) -> None:
    for name, member, archive in tar_members(path):
        source = archive.extractfile(member)
        if source is None:
            raise ArchiveError(f'{path}: holds "{name}", which is not a plain file; do not use it')
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
