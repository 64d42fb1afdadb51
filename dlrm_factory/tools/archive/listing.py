"""Listing of an archive, a `.mar`, a `.tar.gz` or a folder, checked without unpacking it.

TorchServe unpacks whatever it is given.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import ArchiveError, WeightsError
from dlrm_factory.tools.archive.zip_listing import DAMAGED, list_zip
from dlrm_factory.weights.seal import (
    DECLARATION_FILE,
    DENSE_FILE,
    MANIFEST,
    SEAL_FILE,
    TABLE_FILE,
    parse_seal,
)

__all__ = [
    "TAR_SUFFIX",
    "ArchiveListing",
    "check_listing",
    "check_manifest",
    "list_folder",
    "list_tar",
    "read_archive_listing",
    "read_text",
    "tar_members",
]

TAR_SUFFIX = ".tar.gz"
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError)


def list_tar(path: Path, *, max_files: int, max_bytes: int) -> dict[str, int]:
    """Bytes of each file of the tar at ``path``, named as TorchServe unpacks it. All of it is read.

    ArchiveError if it is damaged, would write outside its folder, or is made to fill memory or disk.
    """
    files: dict[str, int] = {}
    for name, member, _ in tar_members(path):
        if name in files:
            raise ArchiveError(f'{path}: holds "{name}" twice')
        files[name] = member.size
        if len(files) > max_files:
            raise ArchiveError(f"{path}: holds over {max_files} files; do not use it")
        if sum(files.values()) > max_bytes:
            raise ArchiveError(f"{path}: takes over {format_bytes(max_bytes)} unpacked; do not use it")
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


_MAX_ENTRIES = 10_000
_MAX_BYTES = 16 << 40  # a whole archive, unpacked
_MAX_TEXT = 16 << 20  # a file that is read here or imported by a worker
_TEXT = (".py", ".yaml", ".yml", ".json", ".txt")
_CONFIG_FILE = "model-config.yaml"
_CREATED = re.compile(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d")
_NUMBERS = re.compile(r"[0-9]+(\.[0-9a-z]+)*")


@dataclass(frozen=True, kw_only=True)
class ArchiveListing:
    """Files and manifest of an archive, as it lists them.

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
        """Bytes that the archive takes unpacked."""
        return sum(self.files.values())

    @property
    def is_dlrm(self) -> bool:
        return {DECLARATION_FILE, DENSE_FILE, TABLE_FILE} <= self.files.keys()


def read_archive_listing(path: Path) -> ArchiveListing:
    """The listing of the `.mar`, the `.tar.gz` or the folder at ``path``.

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


def check_listing(listing: ArchiveListing) -> None:
    """Hold names and sizes against the archive's own seal; nothing large is read.

    ArchiveError for a file that is missing, was added, or has another size. An archive of another maker passes.
    """
    if not listing.is_dlrm and SEAL_FILE not in listing.files:
        return
    path = listing.path
    if SEAL_FILE not in listing.files:
        raise ArchiveError(f"{path}: has no {SEAL_FILE}; make it again with `dlrm archive`")
    try:
        seal = parse_seal(read_text(path, SEAL_FILE).encode(), f"{path}: {SEAL_FILE}")
    except WeightsError as error:
        raise ArchiveError(str(error)) from None
    for name, sealed in seal.files.items():
        found = listing.files.get(name)
        if found is None:
            raise ArchiveError(f'{path}: has no "{name}", and {SEAL_FILE} names it; make it again')
        if found != sealed.size:
            raise ArchiveError(
                f'{path}: its "{name}" has {found} bytes but {sealed.size} were sealed; make it again'
            )
    for name in sorted(listing.files.keys() - seal.files.keys() - {SEAL_FILE, MANIFEST}):
        # Python keeps compiled code beside the sources of a folder that is served.
        if not (path.is_dir() and "__pycache__" in name):
            raise ArchiveError(
                f'{path}: holds "{name}", which is not in {SEAL_FILE}; it was added, remove it'
            )


def check_manifest(text: str, source: str, files: dict[str, int]) -> None:
    """ArchiveError if a manifest is not as torch-model-archiver writes it for one of the archive's own handlers."""
    manifest = json.loads(text)
    model = manifest["model"]
    expected: dict[str, Any] = {
        "createdOn": _CREATED,
        "runtime": re.compile("python3?"),
        "archiverVersion": _NUMBERS,
        "model": re.compile(".*"),
    }
    _check_keys(manifest | {"model": ""}, expected, source)
    _check_keys(
        model,
        {
            "modelName": re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*"),
            "modelVersion": re.compile(r"[A-Za-z0-9_\-.]+"),
            "handler": re.compile(r"[\w.]+\.py"),
            "configFile": re.compile(re.escape(_CONFIG_FILE)),
        },
        f"{source}: model",
    )
    for key in ("handler", "configFile"):
        if model[key] not in files:
            raise ArchiveError(f'{source}: its {key} is "{model[key]}", which is not in the archive')
    if text.strip() != json.dumps(manifest, indent=2):
        raise ArchiveError(f"{source}: is damaged (it is not as torch-model-archiver writes it)")


def _check_keys(found: dict[str, Any], expected: dict[str, re.Pattern[str]], source: str) -> None:
    if found.keys() != expected.keys():
        raise ArchiveError(
            f"{source}: has {', '.join(map(str, found))}; {', '.join(expected)} are expected; it is damaged"
        )
    for key, pattern in expected.items():
        if not isinstance(found[key], str) or not pattern.fullmatch(found[key]):
            raise ArchiveError(f'{source}: {key} is "{found[key]}", which cannot be; it is damaged')


def _files(path: Path) -> dict[str, int]:
    if path.is_dir():
        return list_folder(path)
    if path.name.endswith(TAR_SUFFIX):
        files = list_tar(path, max_files=_MAX_ENTRIES, max_bytes=_MAX_BYTES)
    else:
        files = list_zip(path, max_files=_MAX_ENTRIES)
    _check_sizes(path, files)
    return files


def list_folder(path: Path) -> dict[str, int]:
    """Bytes of each file of the folder ``path``, by name. ArchiveError for what is not plain or leads out."""
    files: dict[str, int] = {}
    try:
        root = path.resolve(strict=True)
        for each in path.rglob("*"):
            _check_link(path, each, root)
            if not each.is_dir() and not each.is_file():
                raise ArchiveError(f'{path}: its "{each.name}" is not a plain file; do not use it')
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
        manifest = json.loads(read_text(path, MANIFEST))
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: its {MANIFEST} is not JSON: {error}") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict) or not model.get("handler") or not model.get("modelName"):
        raise ArchiveError(f"{path}: its {MANIFEST} names no model and handler")
    return model


def read_text(path: Path, name: str) -> str:
    """The text of a file already listed, so its size is checked. ArchiveError if it is damaged."""
    try:
        if path.is_dir():
            return (path / name).read_text(encoding="utf-8")
        if path.name.endswith(TAR_SUFFIX):
            return _read_tar(path, name).decode("utf-8")
        with zipfile.ZipFile(path) as archive:
            return archive.read(name).decode("utf-8")
    except (*DAMAGED, tarfile.TarError) as error:
        raise ArchiveError(f'{path}: its "{name}" is damaged: {error}') from None


def _read_tar(path: Path, name: str) -> bytes:
    for found, member, archive in tar_members(path):
        source = archive.extractfile(member) if found == name else None
        if source is not None:
            return source.read()
    raise tarfile.TarError("it is not there")
