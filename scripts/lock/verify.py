"""Says whether the installed packages are those of the lock files, without importing any of them.

Usage: ``python verify.py [--not-editable] ROOT LOCK…``. Prints a line for each thing that is wrong; exit status 1 if
any is. With ``--not-editable`` the project may be a copy, as in an image, and not ROOT itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

FBGEMM = frozenset({"fbgemm-gpu", "fbgemm-gpu-cpu"})


def canonical(name: str) -> str:
    """``typing_extensions`` → ``typing-extensions``, as package indexes compare names."""
    return name.lower().replace("_", "-").replace(".", "-")


def installed(name: str) -> Distribution | None:
    """The installed distribution of that name, if there is one."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def read_pins(locks: list[Path]) -> dict[str, str]:
    """``{"torch": "==2.13.0+cpu"}`` for the lines of the locks that count for this Python."""
    from packaging.requirements import Requirement

    lines = [line.strip() for lock in locks for line in lock.read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonical(p.name): str(p.specifier) for p in pins if p.marker is None or p.marker.evaluate()}


def wrong_versions(pins: dict[str, str]) -> Iterator[str]:
    """One line for each package that is missing or of another version than its pin."""
    from packaging.specifiers import SpecifierSet

    for name, specifier in pins.items():
        found = installed(name)
        if found is None:
            yield f"{name} is not installed, the lock says {specifier}"
        elif not SpecifierSet(specifier, prereleases=True).contains(found.version):
            yield f"{name} {found.version} is installed, the lock says {specifier}"


def wrong_fbgemm(pins: dict[str, str]) -> Iterator[str]:
    """One line if the other fbgemm build is here too, or has overwritten the libraries of this one."""
    wanted = FBGEMM & pins.keys()
    for name in sorted(FBGEMM - wanted):
        if wanted and installed(name):
            yield f"{name} is installed over {', '.join(wanted)}; both unpack into the folder fbgemm_gpu"
    for name in wanted:
        found = installed(name)
        damaged = damaged_libraries(found) if found else []
        if damaged:
            yield f"{name} is damaged: {damaged[0]} is not the file that was installed"


def damaged_libraries(package: Distribution) -> list[str]:
    """The package's shared libraries whose size is not the one recorded when it was installed."""
    damaged = []
    for file in package.files or []:
        if file.suffix == ".so":
            path = Path(str(package.locate_file(file)))
            if not path.is_file() or path.stat().st_size != file.size:
                damaged.append(str(file))
    return damaged


def wrong_project(root: Path, *, editable: bool) -> Iterator[str]:
    """One line if the project is not installed, or not editable from ``root`` where it must be."""
    project = installed("torchserve-dlrm")
    if not editable:
        if project is None:
            yield "torchserve-dlrm is not installed"
        return
    origin = json.loads((project and project.read_text("direct_url.json")) or "{}")
    if origin.get("url") != root.as_uri() or not origin.get("dir_info", {}).get("editable"):
        yield f"torchserve-dlrm is not installed editable from {root}"


def problems(root: Path, locks: list[Path], *, editable: bool = True) -> list[str]:
    """Everything that is wrong, one sentence each."""
    try:
        pins = read_pins(locks)
    except ImportError:
        return ["packaging is not installed"]
    return [*wrong_versions(pins), *wrong_fbgemm(pins), *wrong_project(root, editable=editable)]


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--not-editable"]
    paths = [Path(argument) for argument in arguments]
    found = problems(paths[0], paths[1:], editable="--not-editable" not in sys.argv)
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
