from __future__ import annotations

import subprocess
import sys

import dlrm_factory


def test_exports_are_pinned():
    assert dlrm_factory.__all__ == [
        "BuiltDLRM", "DLRMDeclaration", "DLRMError", "DLRMFactory", "FeatureBatch", "Scorer",
        "open_checkpoint", "preset", "read_declaration", "save_checkpoint",
    ]  # fmt: skip
    assert all(getattr(dlrm_factory, name) for name in dlrm_factory.__all__)


def test_the_command_line_starts_without_torch():
    code = "import dlrm_factory, dlrm_factory.tools.cli.main, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
