"""Code that an archive carries: `dlrm_factory` but for its tools, and the whole of `handler`."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from dlrm_factory.errors import ArchiveError
from dlrm_factory.weights.sealed import HANDLER_FILE

__all__ = ["HANDLER_FILE", "LEFT_OUT", "pack_code"]

# The part of dlrm_factory that a server never imports; it needs packages that a server host need not have. A test
# holds that nothing packed imports it but the front doors, and that what is packed keeps to a server's packages.
LEFT_OUT = "tools"


def pack_code(folder: Path) -> None:
    """Copy the packages into ``folder``, and the handler file to its root, where TorchServe looks for it."""
    library, handler = _source_of("dlrm_factory"), _source_of("handler")
    _copy_package(library, folder / library.name, leave_out=frozenset({LEFT_OUT}))
    _copy_package(handler, folder / handler.name, leave_out=frozenset({HANDLER_FILE}))
    if not (handler / HANDLER_FILE).is_file():
        raise ArchiveError(f"{handler / HANDLER_FILE}: is missing; install torchserve-dlrm again")
    shutil.copyfile(handler / HANDLER_FILE, folder / HANDLER_FILE)


def _source_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ArchiveError(f'package "{package}" is not installed; install torchserve-dlrm again')
    return Path(next(iter(spec.submodule_search_locations)))


def _copy_package(source: Path, target: Path, *, leave_out: frozenset[str]) -> None:
    def ignored(folder: str, names: list[str]) -> set[str]:
        here = leave_out if Path(folder) == source else frozenset()
        return {
            name for name in names if name in here or name.startswith((".", "__pycache__")) or ".pyc" in name
        }

    shutil.copytree(source, target, ignore=ignored, copy_function=shutil.copyfile)
