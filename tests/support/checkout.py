"""A copy of the repository to run scripts and README commands in, with this environment and free ports."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlrm_factory.tools.server.settings import free_ports

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "scripts",
    "config.properties",
    "model_store/README.md",
    "dlrm_factory/tools/server",
    "handler",
    "README.md",
)
PORTS = ("8080", "8081", "8082", "7070", "7071")


@dataclass(frozen=True)
class Ran:
    """``output``: standard output and error together."""

    returncode: int
    output: str


def make_checkout(folder: Path) -> Path:
    """Copy what scripts and commands touch into ``folder``; the packages are this environment's."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    # Set-up has its own tests; here it would only find out that this is not the folder it was made for.
    (folder / "scripts" / "setup").write_text("#!/bin/sh\n")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


def replace_ports(folder: Path, *texts: str) -> list[str]:
    """``texts`` and the copy's config.properties with free ports in place of TorchServe's own."""
    config = folder / "config.properties"
    replaced = [config.read_text(), *texts]
    for old, new in zip(PORTS, free_ports(len(PORTS)), strict=True):
        replaced = [text.replace(old, str(new)) for text in replaced]
    config.write_text(replaced[0])
    return replaced[1:]


def run_bash(script: str, folder: Path, *, timeout: float = 240) -> Ran:
    """Run ``script`` in ``folder`` as a person would, stopping at the first command that fails."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"TMPDIR": str(temporary), "TEMP": str(temporary), "JAVA_HOME": str(_java_home())}
    # Into a file: a server left behind would hold a pipe open, and the test would wait for it.
    with (
        (folder / "output.txt").open("w+") as output,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        ) as bash,
    ):  # fmt: skip
        try:
            bash.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(bash.pid, signal.SIGTERM)  # scripts stop what they have started
            bash.wait(60)
            output.seek(0)
            raise AssertionError(f"not done in {timeout:g} s: {output.read()[-3000:]}") from None
        output.seek(0)
        return Ran(returncode=bash.returncode, output=output.read())


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that still run in or for ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if str(folder) in (process.info["cwd"] or "") or any(str(folder) in word for word in words):
            found.append(" ".join(words)[:200])
    return found


def _java_home() -> Path:
    from dlrm_factory.tools.java import find_java, java_home

    return java_home(find_java())
