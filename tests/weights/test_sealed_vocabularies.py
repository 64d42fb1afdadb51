"""Vocabularies and statistics travel from the checkpoint to what a worker loads, and scores are right there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.batches import random_state, unsharded_logits
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.batch import to_dense
from dlrm_factory.config import tiny
from dlrm_factory.errors import WeightsError
from dlrm_factory.factory import DLRMFactory
from dlrm_factory.features import FeatureEncoder
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.staging import stage
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import SealedWeights, seal_weights

DECLARATION = raw_declaration()
COLUMNS = {
    "price": [9.5, None, 1000],
    "user": ["user_3", "nobody", 4],
    "item": ["item_1", "item_24", None],
    "seen": [{"ids": ["item_2", "gone", "item_3"], "weights": [0.5, 9, -2]}, ["item_1"] * 5, "item_7"],
    "tags": [[1, 2, 3], [], 4],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "raw.safetensors"
    save_checkpoint(path, DECLARATION, random_state(DECLARATION), vocabularies=raw_vocabularies())
    return path


def test_a_checkpoint_carries_its_vocabularies(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.vocabularies is not None
    assert bytes(opened.vocabularies.data) == bytes(raw_vocabularies().data)
    assert opened.declaration == DECLARATION
    assert "vocabularies" not in opened.dense_state()


def test_a_checkpoint_without_them_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no vocabulary of the ids of t_user, t_item"):
        save_checkpoint(tmp_path / "c.safetensors", DECLARATION, random_state(DECLARATION))
    with pytest.raises(WeightsError, match="has vocabularies of t_user, t_item, but none declared"):
        save_checkpoint(tmp_path / "c", tiny(), random_state(tiny()), vocabularies=raw_vocabularies())


def test_what_cannot_encode_requests_is_not_sealed(tmp_path: Path) -> None:
    declaration = raw_declaration(fitted=False)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, declaration, random_state(declaration), vocabularies=raw_vocabularies())
    with pytest.raises(WeightsError, match='"price" is standardised, but has no mean and std'):
        seal_weights(open_checkpoint(path), tmp_path / "sealed")


def test_sealed_scores_are_those_of_bags_pooled_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    seal_weights(open_checkpoint(checkpoint), tmp_path / "sealed")
    scorer = Scorer.load(tmp_path / "sealed")
    batch = FeatureEncoder(scorer.declaration, scorer.vocabularies).encode(COLUMNS, 3)
    assert batch.weights is not None
    assert batch.lengths.tolist() == [[1, 1, 1], [1, 1, 0], [2, 3, 1], [3, 0, 1]]
    expected = unsharded_logits(DECLARATION, random_state(DECLARATION), batch, quantized=True)
    for logits in (
        scorer.logits(batch),
        scorer.reference_logits(batch),
        scorer.interact(to_dense(batch), scorer.look_up(batch))[:, 0],
    ):
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    built = DLRMFactory(DECLARATION).build(weights=open_checkpoint(checkpoint))
    np.testing.assert_allclose(Scorer(built).logits(batch), expected, atol=1e-5)


def test_a_staged_folder_holds_them_and_can_be_staged_again(checkpoint: Path, tmp_path: Path) -> None:
    stage(checkpoint, tmp_path / "first")
    stage(tmp_path / "first", tmp_path / "second")
    for folder in ("first", "second"):
        sealed = SealedWeights(tmp_path / folder)
        assert sealed.vocabularies is not None
        assert bytes(sealed.vocabularies.data) == bytes(raw_vocabularies().data)
        assert all((tmp_path / folder / name).is_file() for name in sealed.files)


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_damaged_vocabulary_file_is_found_on_loading(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    seal_weights(open_checkpoint(checkpoint), tmp_path / "sealed")
    file = tmp_path / "sealed" / "vocabularies.bin"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-1])
    if damage == "another":
        file.write_bytes(content[:-70] + b"x" + content[-69:])
    with pytest.raises(WeightsError, match=r"vocabularies\.bin"):
        Scorer.load(tmp_path / "sealed")
