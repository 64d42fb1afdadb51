"""docs/python.md runs, but for its server."""

from __future__ import annotations

from support.documents import python_examples, run_examples

EXAMPLES = python_examples("docs/python.md")


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "start_server" in EXAMPLES[-1]
    names = run_examples(EXAMPLES[:-1])
    assert names["report"].held_out_rows > 300
    assert names["proven"].goldens.requests == 40
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "plan.svg").is_file()
    assert sum(names["plan"].rank_bytes()) > 0
    assert names["df"].read_declaration("drafted.yaml").training.label == "click"
    assert names["scorer"].declaration == names["df"].open_checkpoint(names["imported"]).declaration
