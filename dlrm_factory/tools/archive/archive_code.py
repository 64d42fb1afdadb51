"""Code in an archive, and whose it is: a server that loads the archive runs all of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.weights.seal import HANDLER_FILE, MODULE_FOLDER

__all__ = ["ArchiveCode", "code_in"]

_PACKAGES = ("dlrm_factory", "handler")
_CODE = (".py", ".pyc", ".so", ".pth")


@dataclass(frozen=True, kw_only=True)
class ArchiveCode:
    """Files of code by their names in the archive.

    Fields:
        installed: of torchserve-dlrm, each the same as the one that is installed here.
        changed: under the names of torchserve-dlrm's packages, but not what is installed here: of another version, or
            somebody's.
        module: of the model's own dense net.
        other: whatever else.
    """

    installed: tuple[str, ...]
    changed: tuple[str, ...]
    module: tuple[str, ...]
    other: tuple[str, ...]

    def sentences(self) -> list[str]:
        """Sentences that tell a person whose the code is."""
        found = []
        for names, verbs, what in (
            (self.installed, ("is", "are"), "of torchserve-dlrm as it is installed here"),
            (self.changed, ("differs", "differ"), "from the torchserve-dlrm that is installed here"),
            (self.module, ("is", "are"), "of the model's own dense net"),
            (self.other, ("is", "are"), "somebody else's"),
        ):
            if names:
                files = "1 file" if len(names) == 1 else f"{len(names)} files"
                sentence = f"{files} of code {verbs[len(names) > 1]} {what}"
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                found.append(sentence if names is self.installed else f"{sentence}: {shown}")
        return found


def code_in(folder: Path) -> ArchiveCode:
    """The code in the archive, or the sealed weights, in ``folder``."""
    roots = {package: _installed(package) for package in _PACKAGES}
    found: dict[str, list[str]] = {"installed": [], "changed": [], "module": [], "other": []}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _CODE and "__pycache__" not in path.parts and path.is_file():
            name = path.relative_to(folder)
            found[_whose(path, name, roots)].append(name.as_posix())
    return ArchiveCode(**{whose: tuple(names) for whose, names in found.items()})


def _whose(path: Path, name: Path, roots: dict[str, Path | None]) -> str:
    if name.as_posix() == HANDLER_FILE:
        name = Path("handler") / HANDLER_FILE
    if name.parts[0] == MODULE_FOLDER:
        return "module"
    if len(name.parts) < 2 or name.parts[0] not in roots:
        return "other"
    root = roots[name.parts[0]]
    same = None if root is None else root.joinpath(*name.parts[1:])
    if same is not None and same.is_file() and same.read_bytes() == path.read_bytes():
        return "installed"
    return "changed"


def _installed(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None
