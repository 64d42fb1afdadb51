"""`scripts/demo_requests.py`: whether an archive is one that the demo can serve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dlrm_factory.config import DLRMDeclaration, ServingOptions, demo, dump_declaration, tiny

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo_requests.py"


@pytest.mark.parametrize(
    ("declaration", "is_demo"),
    [
        (demo(), True),
        (msgspec.structs.replace(demo(), serving=ServingOptions(max_samples=7)), True),
        (tiny(), False),
        (msgspec.structs.replace(demo(), dense_features=demo().dense_features[:3]), False),
        (None, False),
    ],
)
def test_the_demos_archive_is_known(
    tmp_path: Path, declaration: DLRMDeclaration | None, is_demo: bool
) -> None:
    if declaration is not None:
        (tmp_path / "MAR-INF").mkdir()
        manifest = '{"model": {"modelName": "dlrm", "handler": "dlrm_handler.py"}}'
        (tmp_path / "MAR-INF" / "MANIFEST.json").write_text(manifest)
        (tmp_path / "dlrm_handler.py").touch()
        (tmp_path / "declaration.yaml").write_text(dump_declaration(declaration), encoding="utf-8")
    done = subprocess.run([sys.executable, SCRIPT, "is_demo", tmp_path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0 if is_demo else 1, b"")
