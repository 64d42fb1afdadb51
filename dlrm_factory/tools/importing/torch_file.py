"""A file of `torch.save`, read with ``weights_only``, mapped where its format allows."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from dlrm_factory.errors import WeightsError
from dlrm_factory.tools.importing.stand_ins import only_stand_ins

__all__ = ["REMEDY", "is_torch_file", "read_torch_file"]

_ZIP = b"PK\x03\x04"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch before 1.6: a pickled magic number, then pickles and tensors
_MOST_PICKLE = 256 << 20
_MOST_MEMBERS = 200_000

REMEDY = """save its weights in a form that holds no program, where the model is at hand:
    import torch.distributed.checkpoint as dcp
    state = {name: t for name, t in model.state_dict().items()}
    dcp.save(state, checkpoint_id="weights_folder")  # on every rank; or, unsharded, safetensors.torch.save_file"""


def is_torch_file(path: Path) -> bool:
    """Whether ``path`` begins like a file of `torch.save`."""
    with path.open("rb") as file:
        start = file.read(len(_OLD))
    return start.startswith(_ZIP) or start == _OLD


def read_torch_file(path: Path, *, shown: str = "") -> Any:
    """What was saved; tensors on the CPU, those of the zip format mapped. Errors call the file ``shown``.

    WeightsError if it is damaged, packed, or names anything that could run.
    """
    shown = shown or str(path)
    try:
        if not is_torch_file(path):
            raise WeightsError(f"{shown}: is not a file of torch.save; {REMEDY}")
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise WeightsError(f"{shown}: cannot be read: {error}") from None
    if mapped:
        _check_zip(path, shown)
    try:
        with only_stand_ins(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises whatever torch stumbles over
        raise WeightsError(f"{shown}: {_reason(error)}") from None


def _check_zip(path: Path, shown: str) -> None:
    """The zip is torch's: stored as it is, no larger inside than outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile too raises more than BadZipFile
        raise WeightsError(f"{shown}: is damaged or cut short: {error}") from None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise WeightsError(f"{shown}: is a TorchScript program, which is not loaded; {REMEDY}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{shown}: holds packed members, which torch.save does not write; {REMEDY}")
    if len(names) > _MOST_MEMBERS or sum(m.file_size for m in members) > path.stat().st_size:
        raise WeightsError(f"{shown}: says that it holds more than the file can; it is damaged")
    pickles = [m for m in members if m.filename.endswith("data.pkl")]
    if not pickles or pickles[0].file_size > _MOST_PICKLE:
        raise WeightsError(f"{shown}: is not a file of torch.save; {REMEDY}")


def _reason(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    for mark in ("Unsupported global: GLOBAL ", "Trying to load unsupported GLOBAL "):
        if mark in text:
            name = text.split(mark, 1)[1].split(" ", 1)[0]
            return f"names {name}, which could run when it is loaded, so it is not; {REMEDY}"
    if "Unsupported" in text or "unrecognized function" in text:
        return f"cannot be loaded safely ({type(error).__name__}: {text[:160]}); {REMEDY}"
    return f"is damaged or cut short ({type(error).__name__}: {text[:160]})"
