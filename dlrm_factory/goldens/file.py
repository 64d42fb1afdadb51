"""``goldens.json``: one golden request a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from dlrm_factory.errors import WeightsError
from dlrm_factory.weights.seal import GOLDENS_FILE

__all__ = ["Golden", "Goldens", "read_goldens", "write_goldens"]

_MAX_BYTES = 16 << 20
_MAX_REQUESTS = 1000
_Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request of one sample.

    Fields:
        request: the JSON body, as a client would send it: rows by name.
        expected: its first probability, by eager scoring of the sealed weights where they were sealed; None of a model
            that gives vectors alone.
        outputs: every output by name, probabilities and vectors, where the request asks for several; else None.
        trained: by the float model; None where that was not at hand.
        real: the sample is a row of the clicks that the model learned from or was tested with; else it was generated.
    """

    request: msgspec.Raw
    expected: _Probability | None
    trained: _Probability | None = None
    outputs: dict[str, float | list[float]] | None = None
    real: bool = False

    @property
    def row(self) -> dict[str, Any]:
        """The sample: raw values by feature. WeightsError if the request is not one row by name."""
        try:
            (row,) = msgspec.json.decode(self.request, type=_Request).instances
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise WeightsError(f"{GOLDENS_FILE}: a golden request is not one row by name: {error}") from None
        return row


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[dict[str, Any]]
    outputs: list[str] | None = None


class Goldens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Golden requests, one at least."""

    requests: Annotated[list[Golden], msgspec.Meta(min_length=1, max_length=_MAX_REQUESTS)]
    format: Literal[1] = 1

    def __len__(self) -> int:
        return len(self.requests)


def read_goldens(folder: Path) -> Goldens | None:
    """The golden requests of the sealed weights in ``folder``; None if they have none. WeightsError if damaged."""
    path = folder / GOLDENS_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise WeightsError(f"{path}: is larger than {_MAX_BYTES} bytes; make the archive again")
        return msgspec.json.decode(data, type=Goldens)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}; make the archive again") from None


def write_goldens(goldens: Goldens, folder: Path) -> None:
    """Keep ``goldens`` with the sealed weights in ``folder``; `seal_folder` must follow."""
    lines = b",\n".join(msgspec.json.encode(golden) for golden in goldens.requests)
    (folder / GOLDENS_FILE).write_bytes(b'{"format":%d,"requests":[\n%s\n]}\n' % (goldens.format, lines))
