"""Commands that a person runs in a hurry do not wait for torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import WITHOUT_TORCH

LIGHT = ("rollback", "status", "scale 2", "stop", "ready", "autoscale", "metrics")


@pytest.mark.parametrize("command", [*LIGHT, "rollout --history", "rollback --help"])
def test_a_light_command_brings_no_torch(command: str, tmp_path: Path) -> None:
    options = [] if "--help" in command else ["--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command.split(), *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "no server runs" in done.stdout + done.stderr or done.returncode == 0


def test_the_process_beside_the_server_brings_no_torch() -> None:
    code = "import dlrm_factory.tools.sidecar.main, sys; assert not {'torch', 'torchrec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
