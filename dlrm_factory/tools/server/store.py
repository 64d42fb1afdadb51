"""Archives and folders of the model store that ``--models`` names, checked before a server is started."""

from __future__ import annotations

import difflib
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrm_factory.config import format_bytes
from dlrm_factory.errors import ArchiveError, ServingError
from dlrm_factory.tools.archive.listing import check_listing, read_archive_listing

__all__ = ["ServedModel", "check_space", "find_models", "unpacked_bytes"]

_SUFFIXES = (".mar", ".tar.gz", ".model")
_MANIFEST = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model to load.

    Args:
        name: as in ``/predictions/{name}``.
        location: what TorchServe is told: a name in the model store, or the absolute path of a folder.
        path: the archive or folder.
    """

    name: str
    location: str
    path: Path

    @property
    def spec(self) -> str:
        return f"{self.name}={self.location}"


def find_models(store: Path, specs: Sequence[str]) -> list[ServedModel]:
    """The models of ``specs`` (``NAME=ARCHIVE``, ``ARCHIVE``, ``all``). Raises ServingError for a bad one."""
    if not store.is_dir():
        what = "is not a folder" if store.exists() else "does not exist"
        raise ServingError(
            f"model store {store} {what}; make an archive with `dlrm archive`, or name its folder with "
            "--model-store"
        )
    wanted: list[str] = []
    for spec in specs:
        wanted += _archives(store) if spec.lower() == "all" else [spec]
    models = [_find(store.resolve(), spec) for spec in wanted]
    _check_names(models)
    return models


def check_space(models: Sequence[ServedModel], folder: Path) -> None:
    """Raises ServingError when the disk of ``folder`` cannot hold the models unpacked."""
    needed = sum(unpacked_bytes(model.path) for model in models)
    free = shutil.disk_usage(folder).free
    if needed > free:
        shown, left = format_bytes(needed), format_bytes(free)
        if shown == left:
            shown, left = f"{needed:,} bytes", f"{free:,}"
        raise ServingError(
            f"unpacking the archives takes {shown}, but {folder} has {left} free; "
            "make room, give --run-dir on another disk, or serve a folder, not an archive (folders are "
            "not copied)"
        )


def unpacked_bytes(path: Path) -> int:
    """Bytes that TorchServe writes to unpack ``path``: none for a folder, unknown (0) for a tarball."""
    if path.is_dir() or not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _archives(store: Path) -> list[str]:
    return sorted(
        each.name
        for each in store.iterdir()
        if each.name.endswith(_SUFFIXES) or (each.is_dir() and (each / _MANIFEST).is_file())
    )


def _find(store: Path, spec: str) -> ServedModel:
    name, separator, location = spec.rpartition("=")
    if not location or (separator and not name):
        raise ServingError(f'--models "{spec}" is not NAME=ARCHIVE, as in dlrm=dlrm.mar')
    path = _locate(store, location)
    name = name or _manifest_name(path)
    _check_name(name, spec)
    inside = path.parent == store
    return ServedModel(name=name, location=path.name if inside else str(path), path=path)


def _locate(store: Path, location: str) -> Path:
    """The archive or folder meant by ``location``: a name in the store, else a path."""
    # Not resolved beyond the store: a link in the store is known by the link's name.
    for path in (store / location, Path(location).expanduser().absolute()):
        if path.is_file() or path.is_dir():
            path = path.parent.resolve() / path.name
            return _usable(store, path)
    known = _archives(store)
    holds = f"it holds {', '.join(known)}" if known else "it is empty: make one with `dlrm archive`"
    raise ServingError(f'no archive "{location}" in model store {store}{_near(location, known)} ({holds})')


def _near(location: str, known: Sequence[str]) -> str:
    """Near matches by the names without endings, for these alone make any two archives alike."""
    stems = {name.partition(".")[0]: name for name in known}
    close = difflib.get_close_matches(location.partition(".")[0], stems)
    return "; did you mean " + " or ".join(f'"{stems[stem]}"' for stem in close) + "?" if close else ""


def _usable(store: Path, path: Path) -> Path:
    if path.is_dir():
        if not (path / _MANIFEST).is_file():
            raise ServingError(f"folder {path} is not a model: it has no {_MANIFEST}")
        _check_listing(path)
        return path
    if path.parent != store:
        raise ServingError(
            f"archive {path} is not in model store {store}; TorchServe loads archives only from there: move "
            f"it, or give --model-store {path.parent}"
        )
    _manifest(path)
    _check_listing(path)
    return path


def _check_listing(path: Path) -> None:
    """ServingError for what `dlrm verify` refuses unread: TorchServe unpacks whatever it is given."""
    try:
        check_listing(read_archive_listing(path))
    except ArchiveError as error:
        raise ServingError(str(error)) from None


def _check_name(name: str, spec: str) -> None:
    bad = sorted(set(name) & set("/,=?#% "))
    if not name or bad:
        raise ServingError(
            f'model name "{name}" of --models "{spec}" may not hold {" ".join(map(repr, bad)) or "nothing"}'
        )


def _check_names(models: Sequence[ServedModel]) -> None:
    seen: set[str] = set()
    for model in models:
        # TorchServe takes the list apart at commas and refuses every path with two dots in it.
        for trap in (",", ".."):
            if trap in model.location:
                raise ServingError(f'TorchServe cannot load "{model.location}": rename it without "{trap}"')
        if model.name in seen:
            raise ServingError(f'two of --models are named "{model.name}"; give each its own name')
        seen.add(model.name)


def _manifest_name(path: Path) -> str:
    """The name that the archiver gave the model; a tarball's is its file's: reading it may take minutes."""
    if path.name.endswith(".tar.gz"):
        return path.name.removesuffix(".tar.gz")
    return str(_manifest(path)["model"].get("modelName") or path.stem)


def _manifest(path: Path) -> dict[str, Any]:
    """The archive's manifest, ``{}`` for a tarball. Raises ServingError for one that cannot be served."""
    if path.name.endswith(".tar.gz"):
        if not tarfile.is_tarfile(path):
            raise ServingError(f"archive {path} is broken: not a gzipped tar file; make it again")
        return {}
    try:
        found = json.loads(_manifest_text(path))
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ServingError(f"archive {path} is broken: {error}; make it again with `dlrm archive`") from error
    except ValueError as error:
        raise ServingError(f"archive {path} is broken: its {_MANIFEST} is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise ServingError(f'archive {path} is broken: its {_MANIFEST} has no "model"')
    if not found["model"].get("handler"):
        raise ServingError(f"archive {path} is broken: its {_MANIFEST} names no handler")
    return found


def _manifest_text(path: Path) -> bytes:
    if path.is_dir():
        return (path / _MANIFEST).read_bytes()
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise ServingError(
            f"archive {path} is broken: not a zip file ({size:,} bytes, perhaps cut short); make it again"
        )
    with zipfile.ZipFile(path) as archive:
        if _MANIFEST not in archive.namelist():
            raise ServingError(f"archive {path} is broken: no {_MANIFEST} in it; make it with `dlrm archive`")
        return archive.read(_MANIFEST)
