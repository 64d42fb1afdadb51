"""What is in an archive, checked without unpacking it: TorchServe unpacks whatever it is given."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dlrm_factory.archive.manifest import MANIFEST
from dlrm_factory.archive.zip_listing import DAMAGED, list_zip
from dlrm_factory.config import DLRMDeclaration, format_bytes, parse_declaration
from dlrm_factory.errors import ArchiveError, ConfigError
from dlrm_factory.held_out import HELD_OUT_FILE
from dlrm_factory.weights.seal import SEAL_FILE
from dlrm_factory.weights.sealed import (
    DECLARATION_FILE,
    DENSE_FILE,
    GOLDENS_FILE,
    TABLE_FILE,
    VOCABULARY_FILE,
)

__all__ = ["ArchiveListing", "read_archive_declaration", "read_archive_listing", "unpacked_weights"]

_MAX_ENTRIES = 10_000
_MAX_BYTES = 16 << 40  # a whole archive, unpacked
_MAX_TEXT = 16 << 20  # a file that is read here or imported by a worker
_BLOCK = 8 << 20
_WEIGHTS = (DECLARATION_FILE, DENSE_FILE, TABLE_FILE, VOCABULARY_FILE, HELD_OUT_FILE, GOLDENS_FILE, SEAL_FILE)
_TEXT = (".py", ".yaml", ".yml", ".json", ".txt")


@dataclass(frozen=True, kw_only=True)
class ArchiveListing:
    """What an archive says of itself.

    Args:
        files: bytes, unpacked, by name.
        is_dlrm: it carries a declaration and sealed weights, so our handler can serve it.
    """

    path: Path
    model_name: str
    version: str
    handler: str
    files: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """What the archive takes unpacked."""
        return sum(self.files.values())

    @property
    def is_dlrm(self) -> bool:
        return {DECLARATION_FILE, DENSE_FILE, TABLE_FILE} <= self.files.keys()


def read_archive_listing(path: Path) -> ArchiveListing:
    """The listing of the `.mar` or the folder at ``path``.

    ArchiveError if it is damaged, is not an archive, or would write outside its folder when unpacked.
    """
    files = _files(path)
    model = _model_of(path, files)
    handler = PurePosixPath(str(model.get("handler", "")).split(":")[0]).name
    # A name without .py is one of TorchServe's own handlers.
    if handler.endswith(".py") and handler not in files:
        raise ArchiveError(f'{path}: its manifest names the handler "{handler}", which is not in it')
    return ArchiveListing(
        path=path,
        model_name=str(model.get("modelName", "")),
        version=str(model.get("modelVersion", "")),
        handler=handler,
        files=files,
    )


def read_archive_declaration(path: Path) -> DLRMDeclaration:
    """The declaration inside the archive at ``path``. ArchiveError if there is none or it is wrong."""
    listing = read_archive_listing(path)
    if DECLARATION_FILE not in listing.files:
        raise ArchiveError(f"{path}: has no {DECLARATION_FILE}; it was not made by `dlrm archive`")
    try:
        return parse_declaration(_read_text(path, DECLARATION_FILE), source=f"{path}: {DECLARATION_FILE}")
    except ConfigError as error:
        raise ArchiveError(str(error)) from None


@contextlib.contextmanager
def unpacked_weights(path: Path) -> Iterator[Path]:
    """A folder with the sealed weights of the archive at ``path``: the archive itself if it is one, else a copy.

    ArchiveError if it is damaged, carries no sealed weights, or this disk has no room for them.
    """
    if path.is_dir() and (path / TABLE_FILE).is_file():
        _folder_files(path)
        yield path
        return
    listing = read_archive_listing(path)
    if not listing.is_dlrm or path.is_dir():
        raise ArchiveError(f"{path}: carries no sealed weights; it was not made by dlrm")
    names = [name for name in _WEIGHTS if name in listing.files]
    with tempfile.TemporaryDirectory() as folder:
        _check_room(path, sum(listing.files[name] for name in names), folder)
        with zipfile.ZipFile(path) as archive:
            for name in names:
                _extract(path, archive, name, Path(folder) / name)
        yield Path(folder)


def _check_room(path: Path, size: int, folder: str) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ArchiveError(
            f"{path}: its weights take {format_bytes(size)} unpacked, and {folder} has {format_bytes(free)}; "
            "set TMPDIR to a larger disk"
        )


def _extract(path: Path, archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Write one file. No more is read than the archive's listing says, whatever the data unpacks to."""
    try:
        with archive.open(name) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
            found = file.tell()
    except DAMAGED as error:
        raise ArchiveError(f'{path}: its "{name}" is damaged: {error}') from None
    if found != archive.getinfo(name).file_size:
        raise ArchiveError(f'{path}: its "{name}" is damaged: it is shorter than the listing says')


def _files(path: Path) -> dict[str, int]:
    if path.is_dir():
        return _folder_files(path)
    files = list_zip(path, most_files=_MAX_ENTRIES)
    _check_sizes(path, files)
    return files


def _folder_files(path: Path) -> dict[str, int]:
    files: dict[str, int] = {}
    try:
        root = path.resolve(strict=True)
        for each in path.rglob("*"):
            _check_link(path, each, root)
            if each.is_file():
                files[each.relative_to(path).as_posix()] = each.stat().st_size
            if len(files) > _MAX_ENTRIES:
                break
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"{path}: cannot be read: {error}") from None
    files = dict(sorted(files.items()))
    _check_sizes(path, files)
    return files


def _check_link(path: Path, each: Path, root: Path) -> None:
    if each.is_symlink() and not each.resolve().is_relative_to(root):
        raise ArchiveError(f'{path}: its "{each.name}" is a link that leads out of the folder; do not use it')


def _check_sizes(path: Path, files: dict[str, int]) -> None:
    if len(files) > _MAX_ENTRIES:
        raise ArchiveError(f"{path}: holds {len(files)} files; at most {_MAX_ENTRIES} are allowed")
    if sum(files.values()) > _MAX_BYTES:
        raise ArchiveError(
            f"{path}: says it takes {format_bytes(sum(files.values()))} unpacked; it is damaged"
        )
    for name, size in files.items():
        if name.endswith(_TEXT) and size > _MAX_TEXT:
            raise ArchiveError(
                f'{path}: "{name}" is {format_bytes(size)}; at most {format_bytes(_MAX_TEXT)} is allowed'
            )


def _model_of(path: Path, files: dict[str, int]) -> dict[str, Any]:
    if MANIFEST not in files:
        raise ArchiveError(
            f"{path}: has no {MANIFEST}, so it is not an archive; make one with `dlrm archive`"
        )
    try:
        manifest = json.loads(_read_text(path, MANIFEST))
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: its {MANIFEST} is not JSON: {error}") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict) or not model.get("handler") or not model.get("modelName"):
        raise ArchiveError(f"{path}: its {MANIFEST} names no model and handler")
    return model


def _read_text(path: Path, name: str) -> str:
    """The text of a file already listed, so its size is checked. ArchiveError if it is damaged."""
    try:
        if path.is_dir():
            return (path / name).read_text(encoding="utf-8")
        with zipfile.ZipFile(path) as archive:
            return archive.read(name).decode("utf-8")
    except DAMAGED as error:
        raise ArchiveError(f'{path}: its "{name}" is damaged: {error}') from None
