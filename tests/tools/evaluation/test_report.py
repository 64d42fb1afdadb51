from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from dlrm_factory.errors import DataError
from dlrm_factory.requests.numbers import answered_probabilities
from dlrm_factory.tools.evaluation import as_json, check_report_folder, write_report
from dlrm_factory.tools.evaluation.figures import curves_of, measure
from dlrm_factory.tools.evaluation.judging import compare
from dlrm_factory.tools.evaluation.pictures import COLOURS, draw_pictures
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
                SliceResult(name="(other)", figures=(alike, alike), kind="other"),
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


SVG = "{http://www.w3.org/2000/svg}"


def groups(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [each for each in root.iter(f"{SVG}g") if each.get("id", "").startswith(name)]


def test_legends_stand_below_the_axes_and_cover_nothing(pictures):
    for svg in pictures.values():
        root = ElementTree.fromstring(svg)
        (legend,) = groups(root, "legend_")
        lowest = 0.0
        for axes in groups(root, "axes_"):
            assert not groups(axes, "legend_")
            # The patch behind the axes is the first path: M x y L x y …; y grows downwards.
            outline = next(axes.iter(f"{SVG}path")).get("d")
            lowest = max(lowest, *(float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", outline)))
        words = [each.get("transform") for each in legend.iter(f"{SVG}g") if each.get("transform")]
        assert len(words) >= 2
        assert all(float(re.match(r"translate\([-\d.]+ ([-\d.]+)\)", at)[1]) > lowest for at in words)


def test_one_evaluation_is_no_curve(evaluation):
    once = replace(evaluation, history=evaluation.history[1:])
    drawn = draw_pictures(once)
    assert list(drawn) == ["roc", "calibration", "scores"]
    text = page(once, drawn)
    assert (
        "The training was evaluated once, after 200 samples, so there is no learning curve: a held-out log-loss of "
        "0.6000 and a held-out AUC of 0.7000."
    ) in text
    assert "Learning curve" not in text


def test_lines_break_between_words_alone_and_never_at_plus_or_minus(evaluation, pictures):
    text = page(evaluation, pictures)
    assert '<span class="word">log-loss</span>' in text
    assert '<span class="word">normalised</span> <span class="word">entropy</span>' in text
    assert '<span class="word">AUC</span> <span class="word">±\N{NO-BREAK SPACE}95%</span>' in text
    for rule in (r"\.word { white-space: nowrap; }", r"td { white-space: nowrap; }", "tabular-nums"):
        assert re.search(rule, text)
    assert "overflow-wrap: anywhere" not in " ".join(re.findall(r"\bt[hd]\b[^{}]*{[^}]*}", text))
    # A figure with its ± is one cell, or one word of a tile.
    own = evaluation.models[0].figures
    half = f"± {(own.auc_high - own.auc_low) / 2:.4f}"
    assert f"<td>{own.auc:.4f} {half}</td>" in text
    assert f'<div class="value word">{own.auc:.4f} <span class="spread">{half}</span></div>' in text
    # Wide tables scroll by themselves, so that the page does not.
    assert text.count("<table>") == text.count('<div class="scroll" tabindex="0"><table>') == 2


def test_long_names_break_at_their_parts(evaluation, pictures):
    alone = SliceResult(name="shop/long_name-2.x", figures=evaluation.slices.slices[0].figures)
    text = page(replace(evaluation, slices=replace(evaluation.slices, slices=(alone,))), pictures)
    assert "shop/<wbr>long_<wbr>name-<wbr>2.<wbr>x" in text


def test_pictures_are_in_the_colours_of_a_light_and_of_a_dark_page(evaluation, pictures):
    text = page(evaluation, pictures)
    assert "@media (prefers-color-scheme: dark)" in text
    for name, colour in COLOURS.items():
        assert any(colour in svg for svg in pictures.values())
        assert text.count(colour) == 1  # where the variable is set
        assert len(re.findall(rf"--{name}: #", text)) == 2
        assert f"var(--{name})" in text
    # Without a colour of its own, what is drawn is black, which a dark page hides.
    assert not re.search(r"(?:fill|stroke): #", text)


NOTES = {
    "bins": "cut into 10 bins",
    "other": "the rest together as (other)",
    "missing": "(missing): samples without a value",
    "overlap": "A sample with several values is in the slice of each",
    "half": "± is half of DeLong&#x27;s 95% interval",
    "alike": "AUC is not defined where all labels are alike in a slice",
    "best": "Best reachable: by the ground truth",
    "roc": "No ROC curve: all labels are alike",
    "history": "no history of its training",
    "once": "The training was evaluated once",
}


def notes_of(evaluation: Evaluation) -> set[str]:
    text = page(evaluation, {})
    return {name for name, note in NOTES.items() if note in text}


def test_notes_stand_only_where_they_apply(evaluation):
    own = evaluation.slices.slices[0].figures
    alike = (evaluation.slices.slices[1].figures[0],) * 2
    table = SliceTable(column="c", overlap=False, slices=(SliceResult(name="a", figures=own),))
    bare = replace(evaluation, best=None, slices=None)
    assert notes_of(bare) == set()
    assert notes_of(evaluation) == {"other", "overlap", "half", "alike", "best"}
    assert notes_of(replace(bare, slices=table)) == {"half"}
    for kind, note in (("bin", "bins"), ("other", "other"), ("missing", "missing")):
        cut = replace(table, slices=(SliceResult(name="a", figures=own, kind=kind),))
        assert notes_of(replace(bare, slices=cut)) == {"half", note}
    undefined = replace(table, slices=(SliceResult(name="a", figures=alike),))
    assert notes_of(replace(bare, slices=undefined)) == {"alike"}
    assert notes_of(replace(bare, history=())) == {"history"}
    assert notes_of(replace(bare, history=evaluation.history[:1])) == {"once"}
    flat = replace(bare, models=(result("DLRM", np.zeros(300, dtype=np.uint8), logits(1)),), comparison=None)
    assert notes_of(flat) == {"roc"}
    text = page(flat, {})
    assert "AUC is not defined where all labels are alike" in text
    assert "scores above a non-click" not in text


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
