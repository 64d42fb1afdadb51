"""``seal.json``: what the files beside it must be, what made them, and how well the model did.

The seal lists the files of sealed weights, and in an archive its code and settings too. The seal tells damage, and
files that do not belong together; it is no signature. Tables and vocabularies carry the checksums of their contents in
their own heads, so of these files the seal holds the head's.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import secrets
from collections.abc import Container, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import msgspec
import xxhash

from dlrm_factory._version import __version__
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.reading import read_declaration
from dlrm_factory.errors import WeightsError
from dlrm_factory.host.checked_file import read_head

__all__ = [
    "DECLARATION_FILE",
    "DENSE_FILE",
    "GOLDENS_FILE",
    "HANDLER_FILE",
    "MANIFEST",
    "MODULE_FOLDER",
    "OPTIONAL_FILES",
    "REFERENCE_FILE",
    "SEAL_FILE",
    "TABLE_FILE",
    "VOCABULARY_FILE",
    "EngineFigures",
    "Evaluation",
    "Seal",
    "SealedFile",
    "installed_versions",
    "parse_seal",
    "read_seal",
    "read_sealed_declaration",
    "unsealed_files",
    "write_seal",
]

SEAL_FILE = "seal.json"
MANIFEST = "MAR-INF/MANIFEST.json"  # torch-model-archiver's, made after the seal
DECLARATION_FILE = "declaration.yaml"
DENSE_FILE = "dense.safetensors"
TABLE_FILE = "tables.bin"
VOCABULARY_FILE = "vocabularies.bin"
GOLDENS_FILE = "goldens.json"
HANDLER_FILE = "dlrm_handler.py"  # at the root of an archive, whose code is sealed too
MODULE_FOLDER = "module"  # code of a dense net of the user's own
REFERENCE_FILE = "reference.json"
OPTIONAL_FILES = (
    VOCABULARY_FILE,
    "held_out.safetensors",
    "seen_ids.safetensors",
    REFERENCE_FILE,
    GOLDENS_FILE,
)

_FORMAT: Final = 2  # since it lists code
_MAX_BYTES = 4 << 20
_BLOCK = 1 << 20
_WITH_HEAD = (TABLE_FILE, VOCABULARY_FILE)
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy")
_CODE = (".py", ".pyc", ".so", ".pth")
_COMPILED = re.compile(r"((?:[^/]+/)*)__pycache__/(\w+)\.cpython-\w+(?:\.opt-\d)?\.pyc")
_REMEDY = "make the archive again from its checkpoint"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An unknown field is an error."""


class _Format(msgspec.Struct, frozen=True):
    format: int = 1


class SealedFile(_Strict, frozen=True):
    """One file. ``xxh3``: XXH3-128 in hex, of all its bytes, or of its head if it has one."""

    size: int
    xxh3: str


class EngineFigures(_Strict, frozen=True):
    """Figures of one way of scoring on held-out samples; differences are of probabilities. None: undefined."""

    auc: float | None
    auc_loss: float | None
    log_loss: float | None
    mean_difference: float | None
    max_difference: float | None


class Evaluation(_Strict, frozen=True):
    """Served scores against trained ones, when the archive was made. ``auc``, ``log_loss``: as trained."""

    samples: int
    auc: float | None
    log_loss: float | None
    engines: dict[str, EngineFigures]


class Seal(_Strict, frozen=True, kw_only=True):
    """The content of ``seal.json``. What the model takes, its schema, is declaration.yaml, which is sealed here.

    Fields:
        files: by their paths below the seal's folder.
        versions: of the packages that made them, by name; of ``python`` and ``torchserve-dlrm`` too.
        training: what training reported, as text.
        evaluation: None if served scores were not compared.
        xxh3: XXH3-128 of the seal's own JSON with this field empty.
    """

    format: Literal[2] = _FORMAT
    files: dict[str, SealedFile]
    versions: dict[str, str]
    training: dict[str, str] = {}
    evaluation: Evaluation | None = None
    xxh3: str = ""

    def check(self, folder: Path) -> None:
        """WeightsError for a file of ``folder`` that is missing, cut short, damaged, or not of this seal."""
        for name, sealed in self.files.items():
            _check_file(folder / name, sealed)

    def check_names(self, folder: Path, *, code_only: bool = False) -> None:
        """WeightsError if a file lies in ``folder`` that was not sealed: it came from somewhere else.

        ``code_only``: only what Python would import, and the files of sealed weights, count.
        """
        for name in unsealed_files(folder, self.files):
            if not code_only or name.endswith(_CODE) or name in OPTIONAL_FILES:
                raise WeightsError(
                    f"{folder / name}: is not in {SEAL_FILE}; it belongs to another archive, or was added; remove it"
                )


def unsealed_files(folder: Path, sealed: Container[str]) -> list[str]:
    """Files of ``folder`` that are not in ``sealed``, and that nothing but a seal accounts for, in order.

    The seal itself, torch-model-archiver's manifest, and what Python keeps compiled of a sealed source are
    accounted for. OSError if the folder cannot be read.
    """
    found = []
    for parent, _, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        found += [(inside / file).as_posix() for file in files]
    return sorted(name for name in found if name not in sealed and not _is_expected(name, sealed))


def _is_expected(name: str, sealed: Container[str]) -> bool:
    if name in (SEAL_FILE, MANIFEST):
        return True
    kept = _COMPILED.fullmatch(name)
    return kept is not None and f"{kept[1]}{kept[2]}.py" in sealed


def read_sealed_declaration(folder: Path) -> DLRMDeclaration:
    """The declaration of the sealed weights in ``folder``, with the code of its module. ConfigError if unusable."""
    return read_declaration(folder / DECLARATION_FILE, code=folder / MODULE_FOLDER)


def read_seal(folder: Path) -> Seal:
    """The seal of the sealed weights in ``folder``. WeightsError if there is none or it is damaged."""
    path = folder / SEAL_FILE
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such seal of the weights; {_REMEDY}")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    return parse_seal(data, str(path))


def parse_seal(data: bytes, source: str) -> Seal:
    """The seal whose file holds ``data``. WeightsError, naming ``source``, if it is damaged or of an older format."""
    if len(data) > _MAX_BYTES:
        raise WeightsError(f"{source}: is larger than {_MAX_BYTES} bytes, so it is no seal; {_REMEDY}")
    try:
        made = msgspec.json.decode(data, type=_Format).format
        if made < _FORMAT:
            raise WeightsError(
                f"{source}: is a seal of format {made}, of an older version of torchserve-dlrm, which did not list "
                f"code; {_REMEDY}"
            )
        seal = msgspec.json.decode(data, type=Seal)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{source}: is damaged: {error}; {_REMEDY}") from None
    if seal.xxh3 != _own_digest(seal):
        raise WeightsError(f"{source}: is damaged (wrong checksum); {_REMEDY}")
    if any(not _is_inside(name) or name == SEAL_FILE for name in seal.files):
        raise WeightsError(f"{source}: names files outside its folder; do not use it")
    if data != _text(seal):
        raise WeightsError(f"{source}: is damaged (it is not as it was written); {_REMEDY}")
    return seal


def write_seal(
    folder: Path,
    names: list[str],
    *,
    versions: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
    evaluation: Evaluation | None = None,
) -> Seal:
    """Seal the files ``names`` in ``folder``. Equal files, versions and figures give an equal seal.

    ``versions``: None for those that are installed.
    """
    seal = Seal(
        files={name: _sealed(folder / name) for name in sorted(names)},
        versions=dict(installed_versions() if versions is None else versions),
        training=dict(sorted((training or {}).items())),
        evaluation=evaluation,
    )
    seal = msgspec.structs.replace(seal, xxh3=_own_digest(seal))
    # Replaced, never written in place: the file may be a link to that of the weights it was made from.
    partial = folder / f".{SEAL_FILE}.{secrets.token_hex(4)}"
    partial.write_bytes(_text(seal))
    partial.replace(folder / SEAL_FILE)
    return seal


def installed_versions(also: Sequence[str] = ()) -> dict[str, str]:
    """Versions of this code, Python, the packages that scores depend on, and those in ``also``, if they are there."""
    versions = {"torchserve-dlrm": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *also):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _text(seal: Seal) -> bytes:
    return msgspec.json.format(msgspec.json.encode(seal), indent=2) + b"\n"


def _is_inside(name: str) -> bool:
    """A plain name below a folder, in the one way of writing it."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name


def _own_digest(seal: Seal) -> str:
    return str(xxhash.xxh3_128_hexdigest(msgspec.json.encode(msgspec.structs.replace(seal, xxh3=""))))


def _check_file(path: Path, sealed: SealedFile) -> None:
    try:
        size = path.stat().st_size
        if size != sealed.size:
            what = "it was cut short" if size < sealed.size else "it is another file"
            raise WeightsError(f"{path}: has {size} bytes but {sealed.size} were sealed; {what}; {_REMEDY}")
        found = _digest(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file, and {SEAL_FILE} names it; {_REMEDY}") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from None
    if found != sealed.xxh3:
        raise WeightsError(
            f"{path}: is damaged, or belongs to another archive (checksum {found}, sealed {sealed.xxh3}); {_REMEDY}"
        )


def _sealed(path: Path) -> SealedFile:
    return SealedFile(size=path.stat().st_size, xxh3=_digest(path))


def _digest(path: Path) -> str:
    if path.name in _WITH_HEAD:
        return str(xxhash.xxh3_128_hexdigest(read_head(path)))
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())
