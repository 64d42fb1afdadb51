from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dlrm_factory import scorer as scorer_module
from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.goldens import add_goldens
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive import verification
from dlrm_factory.tools.archive.verification import verify_weights
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.metrics.metrics import auc
from dlrm_factory.tools.training import train
from dlrm_factory.weights.checkpoint import open_checkpoint
from dlrm_factory.weights.held_out import read_held_out
from dlrm_factory.weights.sealed import seal_folder, seal_weights


def test_held_out_samples_travel_with_the_checkpoint(trained):
    held_out = open_checkpoint(trained).held_out
    assert held_out is not None
    assert 300 < len(held_out.batch) < 500
    assert set(held_out.labels[:, 0].tolist()) == {0, 1}


def test_what_serving_loses_is_reported(sealed):
    found = verify_weights(sealed)
    assert found.tables == 3
    assert found.samples > 300
    (eager,) = found.engines  # `tiny` is not compiled
    assert 0 < eager.max_difference < 0.1
    assert eager.mean_difference < eager.max_difference
    assert abs(eager.auc_loss - (found.float_auc - eager.auc)) < 1e-12
    assert abs(eager.auc_loss) < 0.01


def test_a_bound_on_the_loss(sealed):
    found = verify_weights(sealed)
    found.check(0.5)
    (drift,) = found.engines
    certain = replace(found, engines=(replace(drift, auc_loss_is_chance=False),))
    with pytest.raises(WeightsError, match="eager scoring loses"):
        certain.check(drift.auc_loss - 1e-6)
    with pytest.raises(WeightsError, match="eager scoring gives probabilities"):
        found.check(0.5, drift.mean_difference / 2)


def test_a_loss_that_so_few_samples_show_by_chance_passes(sealed):
    held_out = read_held_out(sealed)
    labels, swapped = held_out.labels[:, 0], held_out.logits[:, 0].copy()
    clicked, other = np.flatnonzero(labels == 1)[0], np.flatnonzero(labels == 0)[0]
    swapped[[clicked, other]] = 9, 8
    right = replace(held_out, logits=swapped[:, None].copy())
    swapped[[clicked, other]] = 8, 9
    one_pair = drift_of(right, swapped)
    assert one_pair.auc_loss > 0
    assert one_pair.auc_loss_is_chance
    # Every click below every other sample is no chance.
    assert not drift_of(right, np.where(labels == 1, -1, 1)).auc_loss_is_chance


def test_figures_are_of_the_numbers_that_are_answered(sealed):
    """Logits that are only shifted rank as before; their probabilities tie once they are all but 1."""
    held_out = read_held_out(sealed)
    logits = np.round(held_out.logits[:, 0], 2)
    trained = replace(held_out, logits=logits[:, None])
    unmoved = drift_of(trained, logits)
    assert (unmoved.auc_loss, unmoved.max_difference, unmoved.ties) == (0, 0, 0)
    near_1 = drift_of(trained, logits + np.float32(17))
    assert abs(near_1.auc_loss) < 1e-12
    assert near_1.ties == 0
    # Float32 knows few numbers there.
    assert near_1.float32_ties > len(logits) / 2
    assert abs(near_1.float32_auc_loss) > 1e-3
    beyond = drift_of(trained, logits + np.float32(60))
    assert beyond.ties == beyond.float32_ties == len(logits)
    assert beyond.auc_loss == pytest.approx(auc(held_out.labels[:, 0], logits) - 0.5)
    assert np.isfinite(beyond.log_loss)


def one_engine(found, **changes):
    """``found`` with a loss of its engine that is within chance."""
    chance = {"auc_loss": 0.002, "auc_loss_low": -0.001, "auc_loss_high": 0.005, "auc_loss_is_chance": True}
    return replace(found, engines=(replace(found.engines[0], **{**chance, **changes}),))


def test_a_bound_that_does_not_bind_says_so(sealed):
    found = one_engine(verify_weights(sealed))
    found.check(0)
    said = "eager: 0.00200 AUC lost, at most 0 allowed: over the bound, but within chance (95 % interval -0.00100 to "
    assert found.remarks(max_auc_loss=0) == [f"{said}+0.00500); --strict refuses it"]
    assert found.remarks(max_auc_loss=0.01) == []
    with pytest.raises(
        WeightsError, match=r"loses 0\.00200 AUC .*at most 1e-07 is allowed, which is within chance"
    ):
        found.check(1e-7, strict=True)
    with pytest.raises(WeightsError, match=r"loses 3\.0e-06 AUC .*at most 0 is allowed; use"):
        one_engine(found, auc_loss=3e-6, auc_loss_is_chance=False).check(0)
    found.check(0.01, strict=True)
    undefined = one_engine(found, auc_loss_low=None, auc_loss_high=None)
    assert "within chance (fewer than 2 clicks or" in undefined.remarks()[0]
    assert [one_engine(found, auc_loss_is_chance=chance).remarks() == [] for chance in (True, False)] == [
        0,
        1,
    ]


def test_a_bound_on_few_rankings_says_so(sealed):
    figures = verification.CompiledFigures(
        max_difference=0.01, batch_difference=0.0, rankings=4, top_10_overlap=0.8
    )
    found = replace(verify_weights(sealed), engines=(), compiled=figures)
    found.check(1)
    (said,) = found.remarks()
    assert said.startswith(
        "compiled: 0.8000 of the eager top 10, at least 0.9 asked for: under the bound, but 4 rank"
    )
    with pytest.raises(WeightsError, match=r"finds 0\.8000 of the eager top 10"):
        found.check(1, strict=True)
    assert replace(found, compiled=replace(figures, rankings=5)).remarks() == []
    assert replace(found, compiled=replace(figures, top_10_overlap=None, rankings=0)).remarks() == []


def test_a_score_that_depends_on_its_batch_is_measured_and_bounded(sealed):
    class TwoCodes:
        """Other code for few samples than for many, as compiled scorers have."""

        def logits(self, batch):
            return np.full(len(batch), 0.0 if len(batch) <= 16 else 0.4, dtype=np.float32)

    held_out = read_held_out(sealed)
    difference = verification._batch_difference(TwoCodes(), held_out.batch)
    assert difference == pytest.approx(1 / (1 + np.exp(-0.4)) - 0.5, abs=1e-6)
    assert verification._batch_difference(Scorer.load(sealed), held_out.batch) < 1e-6
    figures = verification.CompiledFigures(
        max_difference=0, batch_difference=difference, rankings=0, top_10_overlap=None
    )
    found = replace(verify_weights(sealed), engines=(), compiled=figures, precision="bf16")
    with pytest.raises(
        WeightsError, match=r"is 0\.09869 from that in another batch, and at most 0\.02 is allowed"
    ):
        found.check(1)
    found.check(1, max_difference=0.1)


@pytest.mark.parametrize("wanted", ["auto", "bf16", "fp32"])
def test_without_held_out_samples_auto_is_fp32(sealed, monkeypatch, wanted):
    monkeypatch.setattr(scorer_module, "best_precision", lambda: "bf16")
    text = (sealed / "declaration.yaml").read_text()
    assert "precision: auto" in text
    (sealed / "declaration.yaml").write_text(text.replace("precision: auto", f"precision: {wanted}"))
    seal_folder(sealed)
    assert Scorer.load(sealed).precision == {"auto": "bf16"}.get(wanted, wanted)
    (sealed / "held_out.safetensors").unlink()
    seal_folder(sealed)
    assert Scorer.load(sealed).precision == {"auto": "fp32"}.get(wanted, wanted)


def test_who_chose_the_precision_is_said(sealed):
    figures = verification.CompiledFigures(
        max_difference=0, batch_difference=0, rankings=0, top_10_overlap=None
    )
    found = replace(verify_weights(sealed), compiled=figures)

    def said(**changes):
        return replace(found, **changes).precision_sentence

    assert "bf16, as serving.precision: auto chooses on this CPU, within" in said(
        precision="bf16", is_auto=True
    )
    assert "bf16 within the bounds above" in said(precision="bf16", is_auto=False)
    assert "auto is fp32, for no held-out" in said(precision="fp32", is_auto=True, samples=0)
    assert "bf16 is declared, and golden requests alone" in said(precision="bf16", is_auto=False, samples=0)
    assert said(precision="fp32", is_auto=False, samples=0) is None
    assert said(precision="bf16", compiled=None) is None


def drift_of(held_out, logits):
    return verification._drift("eager", held_out, logits.astype(np.float32))


def ranking_of(*changes):
    """Logits of 100 candidates, best first, with some of them changed."""
    logits = np.linspace(2, -2, 100, dtype=np.float32)
    for place, logit in changes:
        logits[place] = logit
    return logits


def test_the_top_10_of_rankings_are_compared():
    eager = np.concatenate([ranking_of(), ranking_of(), ranking_of()[:50]])
    # Two of the first ten change places with two behind; within the ten of the second ranking nothing is lost.
    compiled = np.concatenate(
        [ranking_of((3, -3), (9, -3)), ranking_of((0, 1.9), (4, 1.99)), ranking_of((0, -3))[:50]]
    )
    found = verification._compiled_figures([eager, ranking_of()], [compiled, ranking_of()], ranked=True)
    assert (found.rankings, found.top_10_overlap) == (2, 0.9)
    assert 0.8 < found.max_difference < 1
    # Golden requests are no ranking.
    found = verification._compiled_figures([ranking_of()], [ranking_of((50, 0))], ranked=False)
    assert (found.rankings, found.top_10_overlap) == (0, None)
    assert 0 < found.max_difference < 0.1


def test_bounds_on_what_compiling_costs(sealed):
    figures = verification.CompiledFigures(
        max_difference=0.01, batch_difference=0.0, rankings=5, top_10_overlap=0.95
    )
    found = replace(verify_weights(sealed), engines=(), precision="bf16", compiled=figures)
    found.check(1)
    with pytest.raises(
        WeightsError, match=r"0\.01000 from the eager .* serving\.precision: fp32 .* --max-difference"
    ):
        found.check(1, max_difference=0.009)
    with pytest.raises(
        WeightsError, match=r"0\.9500 of the eager top 10, .* serving\.precision: fp32 .* --min-over"
    ):
        found.check(1, min_overlap=0.96)
    with pytest.raises(WeightsError, match=r"is allowed; declare serving\.compile: off"):
        replace(found, precision="fp32").check(1, max_difference=0.009)
    few = replace(figures, rankings=4)  # a few rankings prove nothing
    replace(found, compiled=few).check(1, min_overlap=0.96)


def test_compiled_scores_are_compared_with_eager_ones(sealed, monkeypatch):
    """A compiler whose code is a little off, as bfloat16 is."""
    add_goldens(sealed)
    declaration = (sealed / "declaration.yaml").read_text().replace("compile: 'off'", "compile: before_ready")
    assert "before_ready" in declaration
    assert "precision: auto" in declaration
    # Whose tolerance has room for it, whatever this CPU's best is.
    declaration = declaration.replace("precision: auto", "precision: bf16")
    (sealed / "declaration.yaml").write_text(declaration)
    seal_folder(sealed)
    interact = Scorer.load(sealed)._interact_eagerly

    def compiled_dense(*args, **kwargs):
        return torch.no_grad()(lambda dense, found: torch.from_numpy(interact(dense, found)) * 1.01)

    monkeypatch.setattr(scorer_module, "compiled_dense", compiled_dense)
    found = verify_weights(sealed)
    assert [drift.engine for drift in found.engines] == ["eager", "compiled"]
    assert 0 < found.compiled.max_difference < 0.05
    assert found.compiled.rankings == found.samples // 100
    assert found.compiled.top_10_overlap == 1  # all are moved alike
    done = CliRunner().invoke(app, ["verify", str(sealed), "--max-auc-loss", "1", "--max-difference", "1"])
    assert done.exit_code == 0, done.output
    assert "of the eager probabilities, and 100.00% of the top 10 are the same" in done.stdout
    done = CliRunner().invoke(
        app, ["verify", str(sealed), "--json", "--max-auc-loss", "1", "--max-difference", "0"]
    )
    assert json.loads(done.stdout)["compiled"]["rankings"] == found.samples // 100
    assert isinstance(done.exception, WeightsError)


def test_tables_that_score_otherwise_do_not_pass(sealed, trained):
    # The dense weights of another seed: what is sealed is not what was trained.
    other = trained.with_name("other.safetensors")
    options = msgspec.structs.replace(tiny().training, seed=99)
    train(msgspec.structs.replace(tiny(), training=options), output=other, rows=500)
    seal_weights(open_checkpoint(other), sealed.parent / "other")
    (sealed / "dense.safetensors").write_bytes((sealed.parent / "other" / "dense.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="is damaged, or belongs to another archive"):
        verify_weights(sealed)
    seal_folder(sealed)
    with pytest.raises(
        WeightsError, match=r"loses .* AUC against|gives probabilities .* from the trained model's"
    ):
        verify_weights(sealed).check(0.0005)


def test_a_flipped_bit_is_found(sealed):
    path = sealed / "tables.bin"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is damaged"):
        verify_weights(sealed)
