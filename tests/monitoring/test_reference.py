"""The reference that an archive carries."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from support.monitoring import DECLARATION, reference_of

from dlrm_factory.errors import WeightsError
from dlrm_factory.monitoring.reference import Reference, read_reference, write_reference
from dlrm_factory.monitoring.stability import psi
from dlrm_factory.tools.archive.reference import MIN_SAMPLES, make_reference
from dlrm_factory.weights.held_out import HeldOut


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of()


def test_numbers_fall_into_bins_of_equal_shares(reference):
    price = reference.dense["price"]
    assert len(price.shares) == 10
    np.testing.assert_allclose(price.shares, 0.1, atol=0.002)
    # Half of all ages are 30: bins that would be empty are left out.
    assert len(reference.dense["age"].shares) < 10
    assert sum(reference.dense["age"].shares) == pytest.approx(1, abs=1e-4)


def test_ids_fall_into_bins_by_popularity(reference):
    user, item, tags = (reference.sparse[name] for name in ("user", "item", "tags"))
    assert (len(user.cells), len(item.cells), len(tags.cells)) == (1024, 500, 20)
    # The most popular id has the first bin.
    assert (item.cells[0], tags.cells[0]) == ("0", "0")
    assert item.cells[-1] > item.cells[0]
    # A quarter of all bags are empty.
    empty = tags.shares[-1]
    assert empty == pytest.approx(0.25 / (0.25 + 1.5), abs=0.02)


def test_it_comes_back_from_its_file(reference, tmp_path):
    write_reference(reference, tmp_path)
    assert read_reference(tmp_path, DECLARATION) == reference
    size = (tmp_path / "reference.json").stat().st_size
    assert size < 2000 * len(reference.dense) + 2000 * len(reference.sparse)
    assert read_reference(tmp_path / "none", DECLARATION) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found["dense"].pop("age"), "not of the declared features"),
        (lambda found: found["dense"]["price"]["edges"].pop(), "bins of price"),
        (lambda found: found["dense"]["price"]["edges"].reverse(), "bins of price"),
        (lambda found: found["sparse"]["item"].update(cells="0" * 499), "bins of item"),
        (lambda found: found["sparse"]["item"].update(cells="f" * 500), "bins of item"),
        (lambda found: found["scores"]["shares"].append(0.0), "cannot be read"),
        (lambda found: found.update(more=1), "cannot be read"),
    ],
)
def test_a_damaged_one_is_refused(reference, tmp_path, change, problem):
    found = json.loads(msgspec.json.encode(reference))
    change(found)
    (tmp_path / "reference.json").write_text(json.dumps(found))
    with pytest.raises(WeightsError, match=problem):
        read_reference(tmp_path, DECLARATION)


def test_few_samples_make_none(reference):
    from support.monitoring import columns

    from dlrm_factory.features import FeatureEncoder

    size = MIN_SAMPLES - 1
    batch = FeatureEncoder(DECLARATION).encode(columns(size, 0), size)
    few = HeldOut(batch=batch, labels=np.zeros(size, np.uint8), logits=np.zeros(size, np.float32))
    assert make_reference(few, DECLARATION) is None


def test_psi_by_hand():
    # (0.5 - 0.25) ln 2 + (0.5 - 0.75) ln(2/3)
    expected = 0.25 * np.log(2) - 0.25 * np.log(2 / 3)
    assert psi(np.array([500_000.0, 500_000.0]), [0.25, 0.75]) == pytest.approx(expected, abs=1e-5)
    assert psi(np.zeros(2), [0.25, 0.75]) == 0
    assert psi(np.array([100.0, 0.0]), [0.5, 0.5]) < 3
