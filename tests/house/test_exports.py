from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dlrm_factory


def test_exports_are_pinned():
    assert dlrm_factory.__all__ == [
        "AutoscaleSettings", "BuiltDLRM", "Capacity", "DLRMDeclaration", "DLRMError", "DLRMFactory",
        "Deployment", "EvaluationSource", "FeatureBatch", "Hardware", "JoinOptions", "LimitError",
        "RequestError", "RolloutBounds", "RolloutOptions", "Scorer", "ServeOptions", "ServingCosts", "ServingHosts",
        "UntrustedCodeError", "archive_model",
        "autoscale_model", "best_use", "capacity_of", "criteo", "draft_declaration", "draw_plan",
        "draw_tuning", "dump_declaration", "evaluate", "first_declaration", "health_of", "hosts_for",
        "import_weights", "join_labels", "join_leader", "open_checkpoint", "preset", "read_declaration", "read_metrics",
        "read_status", "roll_back",
        "roll_out", "save_checkpoint", "scale_workers", "stage", "start_server", "stop_server",
        "traffic_of", "train", "trust_code", "tune", "verify", "write_report",
    ]  # fmt: skip
    assert all(getattr(dlrm_factory, name) for name in dlrm_factory.__all__)


def assert_runs(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_export_is_documented_for_python():
    document = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in dlrm_factory.__all__ if f"`{name}`" not in document] == []
    assert [name for name in dlrm_factory.__all__ if not getattr(dlrm_factory, name).__doc__] == []


def test_the_command_line_starts_without_torch():
    assert_runs("import dlrm_factory, dlrm_factory.tools.cli.main, sys; assert 'torch' not in sys.modules")


def test_a_declaration_is_read_without_torch():
    assert_runs("import dlrm_factory, sys; dlrm_factory.preset('tiny'); assert 'torch' not in sys.modules")
