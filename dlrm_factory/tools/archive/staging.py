"""A checkpoint → the staged folder: an archive's content, laid out as the archive's root."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ArchiveError, WeightsError
from dlrm_factory.goldens import add_goldens
from dlrm_factory.monitoring.reference import write_reference
from dlrm_factory.tools.archive.group_replay import replay_in_group
from dlrm_factory.tools.archive.model_config import MODEL_CONFIG_FILE, model_config
from dlrm_factory.tools.archive.reading import link_or_copy
from dlrm_factory.tools.archive.reference import make_reference
from dlrm_factory.weights.checkpoint import Checkpoint, open_checkpoint
from dlrm_factory.weights.held_out import HeldOut, read_held_out
from dlrm_factory.weights.seal import GOLDENS_FILE, HANDLER_FILE, REFERENCE_FILE, TABLE_FILE, read_seal
from dlrm_factory.weights.sealed import SealedWeights, reseal, seal_weights

__all__ = [
    "HANDLER_FILE",
    "LEFT_OUT",
    "Progress",
    "archiver_command",
    "check_replaceable",
    "fill_stage",
    "open_weights",
    "pack_code",
    "replace_folder",
    "stage",
]

# The part of dlrm_factory that a server never imports; it needs packages that a server host need not have. A test
# holds that nothing packed imports it but the front doors, and that what is packed keeps to a server's packages.
LEFT_OUT = "tools"

_MAX_FIGURE = 200  # characters
Progress = Callable[[int, int], None]
Weights = Checkpoint | SealedWeights


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


def stage(weights: Path, folder: Path, *, force: bool = False, progress: Progress | None = None) -> None:
    """Write the content of an archive into ``folder``, all or nothing.

    Args:
        weights: a checkpoint, or a folder of sealed weights, whose files are then linked and not copied.
        folder: must not exist or be empty; with ``force`` a folder staged before is replaced.
        progress: called with (bytes written, bytes in all) of the tables.

    Raises:
        WeightsError: ``weights`` cannot be used.
        ArchiveError: ``folder`` is in the way or cannot be written.
    """
    check_replaceable(folder, force=force)
    source = open_weights(weights)
    with partial_beside(folder) as partial, disk_errors(folder):
        fill_stage(source, partial, progress=progress)
        replace_folder(partial, folder)


def open_weights(path: Path) -> Weights:
    """The checkpoint or the folder of sealed weights at ``path``. WeightsError if it is neither."""
    if not path.exists():
        raise WeightsError(f"{path}: there is no such checkpoint; make one with `dlrm train`")
    return SealedWeights(path) if path.is_dir() else open_checkpoint(path)


def fill_stage(weights: Weights, folder: Path, *, progress: Progress | None = None) -> None:
    """Write code, model-config.yaml and sealed weights with golden requests into the empty ``folder``.

    The golden requests are made by one process, and must be reproduced by a group of as many ranks as a worker has.

    OSError if it cannot be written. WeightsError if the weights give scores that are not finite, or others in a group.
    """
    pack_code(folder)
    (folder / MODEL_CONFIG_FILE).write_text(model_config(weights.declaration), encoding="utf-8")
    if isinstance(weights, Checkpoint):
        seal_weights(weights, folder, progress=progress, training=_figures(weights))
        add_goldens(folder, real_rows=weights.golden_rows, trained=weights)
        _add_reference(folder, weights.held_out, weights.declaration)
    else:
        for name in weights.files:
            (folder / name).parent.mkdir(exist_ok=True)
            link_or_copy(weights.folder / name, folder / name)
        reseal(folder, weights.seal)
        if GOLDENS_FILE not in weights.files:
            add_goldens(folder)
        if REFERENCE_FILE not in weights.files:
            _add_reference(folder, read_held_out(folder), weights.declaration)
    ranks = weights.declaration.sharding.local_world_size
    if ranks > 1:
        # This host need not have the GPUs of the one that serves.
        replay_in_group(folder, ranks, device="cpu", compiled=False)


def _add_reference(folder: Path, held_out: HeldOut | None, declaration: DLRMDeclaration) -> None:
    """Seal the distribution of ``held_out`` in; without enough of such samples there is none."""
    reference = None if held_out is None else make_reference(held_out, declaration)
    if reference is not None:
        write_reference(reference, folder)
        reseal(folder, read_seal(folder))


def _figures(checkpoint: Checkpoint) -> dict[str, str]:
    """Figures that training reported, without long ones such as the history of its evaluations."""
    return {name: value for name, value in checkpoint.metadata.items() if len(value) <= _MAX_FIGURE}


def check_replaceable(folder: Path, *, force: bool) -> None:
    """ArchiveError if ``folder`` holds anything that we may not replace: we delete only what we made."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ArchiveError(f"{folder}: is in the way; it is not a folder")
    if not any(folder.iterdir()):
        return
    if not all((folder / name).is_file() for name in (HANDLER_FILE, MODEL_CONFIG_FILE, TABLE_FILE)):
        raise ArchiveError(f"{folder}: is not empty and was not made by dlrm; name another folder")
    if not force:
        raise ArchiveError(f"{folder}: exists; give --force to replace it")


def replace_folder(partial: Path, folder: Path) -> None:
    """Move the finished ``partial`` to ``folder``; what stands there is removed. OSError if it cannot be."""
    if not folder.exists():
        partial.rename(folder)
        return
    old = partial.with_name(partial.name + ".old")
    folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old)


def archiver_command(folder: Path, *, model_name: str, version: str, export_path: Path) -> str:
    """The plain torch-model-archiver command that makes the archive of a staged ``folder``.

    ArchiveError for a folder that torch-model-archiver would misread, or delete.
    """
    if "," in str(folder) or glob.escape(str(folder)) != str(folder):
        raise ArchiveError(
            f"{folder}: torch-model-archiver reads , * ? [ in a path as patterns; rename the folder"
        )
    if folder.resolve() == Path(tempfile.gettempdir()).resolve() / model_name:
        raise ArchiveError(f"{folder}: torch-model-archiver deletes this very folder first; stage elsewhere")
    words = ["torch-model-archiver", "--model-name", model_name, "--version", version]
    words += ["--handler", str(folder / HANDLER_FILE), "--extra-files", str(folder)]
    words += ["--config-file", str(folder / MODEL_CONFIG_FILE)]
    # Deflating tables takes minutes a gigabyte and gains little: rows of weights hardly compress.
    words += ["--archive-format", "zip-store", "--export-path", str(export_path)]
    return shlex.join(words)


@contextlib.contextmanager
def partial_beside(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``target``, on the same disk; gone afterwards unless it was moved."""
    partial = target.absolute().with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with disk_errors(target):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into an ArchiveError about ``target``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ArchiveError(f"{target}: cannot be written: {why}") from error
