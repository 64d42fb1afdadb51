"""The server of docs/python.md."""

from __future__ import annotations

import pytest
from support.batches import random_state, uncompiled
from support.documents import python_examples, run_examples

import dlrm_factory
from dlrm_factory.config import tiny
from dlrm_factory.tools.server import running_server

pytestmark = pytest.mark.integration


def test_the_server_of_the_document(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "tiny.safetensors"
    dlrm_factory.save_checkpoint(checkpoint, uncompiled(tiny()), random_state(tiny()))
    dlrm_factory.archive_model(checkpoint, tmp_path / "model_store" / "tiny.mar", model_name="tiny")
    imports = "from pathlib import Path\nimport dlrm_factory as df\n"
    run_examples([imports, python_examples("docs/python.md")[-1]])
    assert "2 workers" in capsys.readouterr().out
    assert running_server(tmp_path / ".dlrm") is None
