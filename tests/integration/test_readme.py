"""The commands of README.md run as they stand there, and so does the demo."""

from __future__ import annotations

import re
import shutil

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


def test_the_commands_of_the_readme_in_their_order(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    shutil.copy(ROOT / ".gitignore", folder)
    script = "\n".join(block for block in BLOCKS if block.strip() != "./scripts/test")
    for word in (
        "./scripts/demo\n",
        "./scripts/demo --keep",
        "dlrm train",
        "dlrm serve",
        "dlrm scale",
        "torch-model-archiver",
        "torchserve --start",
        "-X PUT",
    ):
        assert word in script
    (script,) = replace_ports(folder, script)
    # What the test itself writes into the folder is no part of the clone.
    with (folder / ".gitignore").open("a", encoding="utf-8") as ignored:
        ignored.write("/tmp/\n/output.txt\n")
    git = "git init --quiet && git add --all && git -c user.name=a -c user.email=a@b commit --quiet -m all\n"
    again = "\ndlrm preset demo --output work/demo.yaml"
    status = '\nif [ -n "$(git status --porcelain)" ]; then git status; exit 1; fi'
    try:
        done = run_bash(git + script + again + status, folder, timeout=600)
        assert done.returncode == 0, done.output[-4000:]
    finally:
        run_bash("dlrm stop || true; torchserve --stop || true", folder) if processes_of(folder) else None
    assert "Traceback" not in done.output
    answers = re.findall(r'"predictions": ?\[([^\]]*)\]', done.output)
    assert [len(answer.split(",")) for answer in answers] == [1, 2, 2, 1]
    assert all(0 < float(score) < 1 for answer in answers for score in answer.split(","))
    kept = script.partition("./scripts/demo --keep\n")[2]
    assert kept[: kept.index(".venv/bin/dlrm stop")] in done.output
    assert "2 workers ready" in done.output
    assert '"status": "Processing worker updates..."' in done.output
    assert "t_C26" in done.output
    check_demo(done.output)
    assert "dlrm.mar has the demo model" in done.output
    assert (folder / "model_store" / "dlrm.mar").is_file()
    assert processes_of(folder) == []


def check_demo(output):
    assert "100 click-through rates" in output
    assert re.search(r'\{"score":0\.\d+\}', output)
    reached, best = map(float, re.search(r"held-out AUC +([0-9.]+) +([0-9.]+)", output).groups())
    assert 0.95 * (best - 0.5) < reached - 0.5 <= best - 0.5


def test_a_demo_that_is_kept_leaves_a_server_alone_that_runs_already(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    (folder / ".dlrm").mkdir()
    (folder / ".dlrm" / "server.json").write_text("{}")
    fake = folder / "bin"
    fake.mkdir()
    (fake / "dlrm").write_text("#!/bin/sh\n[ $1 = predict ]\n")
    (fake / "dlrm").chmod(0o755)
    demo = folder / "scripts" / "demo"
    demo.write_text(demo.read_text().replace('PATH="$PWD/.venv/bin:', 'PATH="$PWD/bin:$PWD/.venv/bin:'))
    done = run_bash("./scripts/demo --keep", folder)
    assert done.returncode == 1
    assert "dlrm stop" in done.output


def test_the_demo_refuses_what_it_does_not_know(tmp_path):
    folder = make_checkout(tmp_path / "checkout")
    done = run_bash("./scripts/demo --kepe", folder)
    assert done.returncode == 2
    assert "--keep" in done.output
