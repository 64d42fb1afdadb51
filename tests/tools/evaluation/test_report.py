from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.requests.answers import answered_probabilities
from dlrm_factory.tools.evaluation import as_json, check_report_folder, write_report
from dlrm_factory.tools.evaluation.evaluate import compare
from dlrm_factory.tools.evaluation.figures import curves_of, measure
from dlrm_factory.tools.evaluation.pictures import draw_pictures
from dlrm_factory.tools.evaluation.report import page
from dlrm_factory.tools.evaluation.results import Best, Evaluation, ModelResult, SliceResult, SliceTable
from dlrm_factory.tools.training import Evaluation as HistoryPoint

LABELS = np.random.default_rng(0).integers(0, 2, 300).astype(np.uint8)
NASTY = '<script>alert("1")</script> & $x^2$ [bold]'


def logits(seed: int, strength: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(strength * LABELS, 1.0).astype(np.float32)


def result(name: str, labels: np.ndarray, scored: np.ndarray) -> ModelResult:
    return ModelResult(
        name=name,
        detail="as trained",
        figures=measure(labels, scored),
        curves=curves_of(labels, answered_probabilities(scored), bins=20),
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    one, other = logits(1), logits(2, 0.5)
    models = (result("DLRM", LABELS, one), result("LightGBM", LABELS, other))
    alike = measure(np.zeros(3, dtype=np.uint8), np.zeros(3))
    return Evaluation(
        model=f"{NASTY}.safetensors",
        samples_from=f"the held-out rows of {NASTY}.csv",
        models=models,
        best=Best(auc=0.8, log_loss=0.5, share=0.9),
        comparison=compare(LABELS, one, other, models),
        slices=SliceTable(
            column=NASTY,
            overlap=True,
            slices=(
                SliceResult(name=NASTY, figures=tuple(model.figures for model in models)),
                SliceResult(name="(other)", figures=(alike, alike)),
            ),
        ),
        history=tuple(
            HistoryPoint(
                step=step,
                samples=100 * step,
                training_loss=0.6,
                held_out_auc=auc,
                held_out_log_loss=0.6,
                learning_rate=0.1,
            )
            for step, auc in ((1, None), (2, 0.7))
        ),
    )


@pytest.fixture(scope="module")
def pictures(evaluation) -> dict[str, str]:
    return draw_pictures(evaluation)


def test_every_picture_is_drawn(pictures):
    assert list(pictures) == ["roc", "calibration", "scores", "learning"]
    for svg in pictures.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "<dc:date>" not in svg
    # Set into one page, no picture may refer to a part of another.
    ids = [
        set(ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}clipPath"))
        for svg in pictures.values()
    ]
    names = [each.get("id") for found in ids for each in found]
    assert len(names) == len(set(names)) > 3


def test_a_picture_that_cannot_be_drawn_is_left_out(evaluation):
    alike = np.zeros(300, dtype=np.uint8)
    bare = replace(
        evaluation, models=(result("DLRM", alike, logits(1)),), history=(), comparison=None, slices=None
    )
    assert list(draw_pictures(bare)) == ["calibration", "scores"]


def test_the_page_holds_everything_and_runs_nothing(evaluation, pictures):
    text = page(evaluation, pictures)
    assert "<script" not in text
    assert text.count("<svg") == 4
    assert text.count("<?xml") == text.count("<!DOCTYPE svg") == 0
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; $x^2$ [bold]" in text
    for shown in (
        "LightGBM",
        f"{evaluation.models[0].figures.auc:.4f}",
        "90.0% of the way from an AUC of 0.5",
        "not defined, no clicks",
        "A sample with several values is in the slice of each",
    ):
        assert shown in text
    assert evaluation.comparison.judgement in text
    for reference in ("http://", "https://", "src="):
        assert reference not in text.replace("http://www.w3.org/", "").replace(
            "http://creativecommons.org/", ""
        ).replace("http://purl.org/", "")


def test_a_page_without_a_history_says_so(evaluation, pictures):
    assert "no history of its training" in page(replace(evaluation, history=()), {})
    assert "no history of its training" not in page(evaluation, pictures)


def test_the_report_is_a_folder_of_files(tmp_path, evaluation, pictures):
    folder = tmp_path / "new" / "report"
    written = write_report(evaluation, folder)
    assert [path.name for path in written] == [
        "report.html", "report.json", "roc.svg", "calibration.svg", "scores.svg", "learning.svg",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(written)
    found = json.loads((folder / "report.json").read_text())
    assert found["models"][0]["auc"] == evaluation.models[0].figures.auc
    assert found["models"][0]["curves"]["roc"]["true_positive_rate"][-1] == 1
    assert found["comparison"]["auc_difference"]["is_significant"] is True
    assert found["slices"]["slices"][1]["models"]["LightGBM"]["auc"] is None
    assert [point["held_out_auc"] for point in found["history"]] == [None, 0.7]
    assert found["best_reachable"] == {"auc": 0.8, "log_loss": 0.5, "share": 0.9}
    # Equal figures draw equal bytes.
    assert {path.stem: path.read_text() for path in written if path.suffix == ".svg"} == pictures
    assert (folder / "report.html").read_text() == page(evaluation, pictures)


def test_pictures_of_an_older_report_are_removed(tmp_path, evaluation):
    for name in ("roc.svg", "learning.svg", "notes.txt"):
        (tmp_path / name).touch()
    write_report(replace(evaluation, models=evaluation.models[:1], slices=None, history=()), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "learning.svg" not in names
    assert {"roc.svg", "notes.txt"} <= names


def test_json_without_curves_is_short(evaluation):
    found = as_json(evaluation)
    assert "curves" not in found["models"][0]
    json.dumps(found, allow_nan=False)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match="the report cannot be written there"):
            check_report_folder(folder)


def judgement(one: np.ndarray, other: np.ndarray, labels: np.ndarray = LABELS) -> str:
    names = (result("DLRM", labels, one), result("LightGBM", labels, other))
    return compare(labels, one, other, names).judgement


def test_the_judgement_says_which_model_ranks_better():
    good, poor = logits(1, 2.0), logits(2, 0.2)
    assert judgement(good, poor).startswith("DLRM ranks better than LightGBM by 0.")
    assert "LightGBM, the simpler model, ranks better than DLRM" in judgement(poor, good)
    assert "do not show that DLRM ranks better or worse" in judgement(good, good)


def test_a_significant_difference_may_be_too_small_to_matter():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 4000).astype(np.uint8)
    scores = rng.normal(labels, 1.0)
    # Twenty clicks rank a little lower: always to the worse, so it is no chance.
    worse = np.where((np.arange(4000) < 40) & (labels == 1), scores - 0.1, scores)
    said = judgement(scores.astype(np.float32), worse.astype(np.float32), labels)
    assert said.startswith("DLRM ranks better")
    assert "more than chance, but little. LightGBM is the simpler model" in said


def test_without_two_of_each_label_nothing_is_judged():
    labels = np.array([1, 0, 0], dtype=np.uint8)
    assert "cannot be compared by AUC" in judgement(np.float32([1, 2, 3]), np.float32([3, 2, 1]), labels)
