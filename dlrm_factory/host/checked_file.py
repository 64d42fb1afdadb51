"""The head of a file that workers map: what kind of file it is, a checked JSON header, then data.

::

    0   magic (8 bytes)
    8   length of the header (uint64, little endian)
    16  XXH3-64 of the header (uint64, little endian)
    24  header: JSON
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import xxhash

from dlrm_factory.errors import WeightsError

__all__ = ["FileKind", "align", "map_file", "read_head"]

_PREFIX = struct.Struct("<8sQQ")
_MAX_HEADER = 16 << 20
_ALIGNMENT = 64
_MAP_NORESERVE = 0x4000  # of Linux's mman.h, which Python does not name

Header = TypeVar("Header", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True)
class FileKind(Generic[Header]):
    """A kind of file: its magic (8 bytes), its name in messages, the type of its header."""

    magic: bytes
    name: str
    header: type[Header]

    def encode(self, header: Header) -> bytes:
        """The file's first bytes."""
        encoded = msgspec.json.encode(header)
        return _PREFIX.pack(self.magic, len(encoded), xxhash.xxh3_64_intdigest(encoded)) + encoded

    def decode(self, data: memoryview, source: str) -> tuple[Header, int]:
        """The header of a file, and where it ends. WeightsError if it is not whole."""
        if len(data) < _PREFIX.size or data[: len(self.magic)] != self.magic:
            raise WeightsError(
                f"{source}: is not a {self.name} (it does not start with {self.magic.decode()})"
            )
        _, length, digest = _PREFIX.unpack_from(data)
        encoded = bytes(data[_PREFIX.size : _PREFIX.size + min(length, _MAX_HEADER)])
        if length > _MAX_HEADER or len(encoded) < length or xxhash.xxh3_64_intdigest(encoded) != digest:
            raise WeightsError(f"{source}: its header is damaged; make the archive again from its checkpoint")
        try:
            return msgspec.json.decode(encoded, type=self.header), _PREFIX.size + length
        except msgspec.MsgspecError as error:
            raise WeightsError(f"{source}: its header cannot be read: {error}") from None


def read_head(path: Path) -> bytes:
    """The file's first bytes, up to the end of its header; fewer if it is cut short. OSError if it cannot be read."""
    with path.open("rb") as file:
        prefix = file.read(_PREFIX.size)
        length = _PREFIX.unpack(prefix)[1] if len(prefix) == _PREFIX.size else 0
        return prefix + file.read(min(length, _MAX_HEADER))


def align(offset: int) -> int:
    """The first multiple of 64 that is not below ``offset``."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def map_file(path: Path, name: str, *, private: bool = False) -> mmap.mmap:
    """All of the file, read-only. WeightsError if there is none or it cannot be mapped.

    ``private``: pages may be written, and are then copies of this process's own; the file is never changed.
    """
    try:
        with path.open("rb") as file:
            if private:  # no memory is set aside for copies: a file may be larger than all there is
                flags, prot = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
                return mmap.mmap(file.fileno(), 0, flags=flags, prot=prot)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such {name}") from None
    except ValueError:  # what mmap raises for an empty file
        raise WeightsError(f"{path}: is not a {name}, it is empty") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be mapped: {error}") from None
