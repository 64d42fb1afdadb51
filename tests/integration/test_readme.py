"""The commands of README.md run as they stand there, and so does the demo."""

from __future__ import annotations

import re

import pytest
from support.checkout import ROOT, make_checkout, processes_of, replace_ports, run_bash

pytestmark = pytest.mark.integration

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
# Run by a test of its own, and by this very run.
SCRIPTS = ("./scripts/demo", "./scripts/test")


def test_the_first_screen_shows_the_two_commands():
    first_screen = "\n".join(README.splitlines()[:40])
    assert all(script in first_screen for script in SCRIPTS)
    assert "curl" in first_screen
    assert '{"predictions":[' in first_screen


def test_the_commands_of_the_readme(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    script = "\n".join(block for block in BLOCKS if block.strip() not in SCRIPTS)
    for word in (
        "dlrm train",
        "dlrm serve",
        "dlrm scale",
        "torch-model-archiver",
        "torchserve --start",
        "-X PUT",
    ):
        assert word in script
    (script,) = replace_ports(folder, script)
    # The preset trains on generated clicks for half a minute; fewer show as well that the commands work.
    script = script.replace("dlrm train demo.yaml", "dlrm train demo.yaml --rows 20000 --epochs 1")
    try:
        done = run_bash(script, folder)
        assert done.returncode == 0, done.output[-4000:]
    finally:
        run_bash("dlrm stop || true; torchserve --stop || true", folder) if processes_of(folder) else None
    answers = re.findall(r'"predictions": ?\[([^\]]*)\]', done.output)
    assert [len(answer.split(",")) for answer in answers] == [2, 2, 1]
    assert all(0 < float(score) < 1 for answer in answers for score in answer.split(","))
    assert "2 workers ready" in done.output
    assert '"status": "Processing worker updates..."' in done.output
    assert "t_C26" in done.output
    assert processes_of(folder) == []


def test_the_demo(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    done = run_bash("./scripts/demo", folder)
    assert done.returncode == 0, done.output[-4000:]
    assert "100 click-through rates" in done.output
    assert re.search(r'\{"score":0\.\d+\}', done.output)
    assert "2 workers ready" in done.output
    reached, best = map(float, re.search(r"held-out AUC +([0-9.]+) +([0-9.]+)", done.output).groups())
    assert 0.95 * (best - 0.5) < reached - 0.5 <= best - 0.5
    assert (folder / "model_store" / "dlrm.mar").is_file()
    assert processes_of(folder) == []


def test_the_demo_refuses_what_it_does_not_know(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    done = run_bash("./scripts/demo --kepe", folder)
    assert done.returncode == 2
    assert "--keep" in done.output
