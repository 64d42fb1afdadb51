"""The commands of docs/tutorial.md run as they stand there."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from support.checkout import ROOT, make_checkout, processes_of, replace_ports, run_bash
from support.ratings import REAL_RATINGS, write_made_up_ratings, write_ratings

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TUTORIAL, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.integration
def test_the_commands_of_the_tutorial(tmp_path: Path) -> None:
    folder = make_checkout(tmp_path / "checkout")
    write_ratings(folder / "ratings.csv")
    (script,) = replace_ports(folder, "\n".join(BLOCKS))
    try:
        done = run_bash(script, folder)
        assert done.returncode == 0, done.output[-6000:]
    finally:
        run_bash("dlrm stop || true", folder) if processes_of(folder) else None
    (score,) = re.findall(r'\{"predictions": ?\[([0-9.e-]+)\]\}', done.output)
    assert 0 < float(score) < 1
    ranking = json.loads(re.search(r'\{"ranking":.*?\]\}', done.output).group())["ranking"]
    assert len(ranking) == 2
    assert ranking[0]["score"] >= ranking[1]["score"]
    # Asked alone or among candidates, a film has one score; compiled code may take over in between.
    among = {each["id"]: each["score"] for each in ranking}
    if "Ed Wood" in among:
        assert among["Ed Wood"] == pytest.approx(float(score), abs=2e-2)
    assert '"explanations"' in done.output
    assert "2 workers ready" in done.output
    assert (folder / "report" / "report.html").is_file()
    assert "lightgbm" in done.output.lower()
    assert processes_of(folder) == []


def test_made_up_ratings_have_the_shape_of_the_real_ones(tmp_path: Path) -> None:
    write_made_up_ratings(tmp_path / "ratings.csv", rows=50)
    with (tmp_path / "ratings.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    shown = re.search(r"^```csv\n(.*?)\n", TUTORIAL, flags=re.MULTILINE).group(1)
    assert ",".join(rows[0]) == shown
    assert {int(row["rating"]) for row in rows} <= {1, 2, 3, 4, 5}
    assert any("|" in row["genres"] for row in rows)
    if REAL_RATINGS.is_file():
        with REAL_RATINGS.open(encoding="utf-8") as file:
            assert next(csv.reader(file)) == list(rows[0])
