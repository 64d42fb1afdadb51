"""`dlrm serve --ranks` without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.batches import random_batch, random_state, uncompiled

from dlrm_factory.config import tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.rendezvous import MeetingPlace
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.model_config import group_of
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server.meeting import meeting_environment
from dlrm_factory.tools.server.ranks import hosts_of, with_other_ranks
from dlrm_factory.tools.server.store import find_models
from dlrm_factory.weights.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with one model as a file and as a folder."""
    folder = tmp_path_factory.mktemp("store")
    declaration = uncompiled(tiny())
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(folder / "tiny.safetensors", folder / "dlrm.mar")
    archive_model(folder / "tiny.safetensors", folder / "dlrm", archive_format="directory")
    return folder


@pytest.mark.parametrize("location", ["dlrm.mar", "dlrm"])
def test_another_number_is_served_from_a_folder_of_its_own(
    archives: Path, tmp_path: Path, location: str
) -> None:
    models = find_models(archives, [f"ads={location}"])
    (model,) = with_other_ranks(models, 2, tmp_path)
    assert (model.name, model.path, model.location) == ("ads", tmp_path / "ads", str(tmp_path / "ads"))
    assert group_of(model.path) == (2, 1)
    assert group_of(models[0].path) == (1, 1)
    # With the same weights, and fit to be served again.
    batch = random_batch(tiny(), 3)
    assert (
        Scorer.load(model.path).logits(batch).tolist()
        == Scorer.load(archives / "dlrm").logits(batch).tolist()
    )
    assert with_other_ranks([model], 2, tmp_path / "again") == [model]
    (alone,) = with_other_ranks([model], 1, tmp_path / "alone")
    assert group_of(alone.path) == (1, 1)


def test_the_archives_own_number_needs_no_copy(archives: Path, tmp_path: Path) -> None:
    models = find_models(archives, ["dlrm=dlrm.mar"])
    assert with_other_ranks(models, None, tmp_path / "none") == models
    assert with_other_ranks(models, 1, tmp_path / "none") == models
    assert not (tmp_path / "none").exists()


def test_models_of_another_kind_have_no_ranks(store, add_archive, tmp_path: Path) -> None:
    add_archive()
    models = find_models(store, ["dlrm=dlrm.mar"])
    assert with_other_ranks(models, None, tmp_path / "none") == models
    with pytest.raises(
        ServingError, match=r'model "dlrm" cannot be served with other ranks: .*no sealed weights'
    ):
        with_other_ranks(models, 2, tmp_path / "staged")


def test_ranks_are_spread_over_hosts(archives: Path, tmp_path: Path) -> None:
    models = find_models(archives, ["dlrm"])
    (model,) = with_other_ranks(models, 4, tmp_path / "spread", hosts=2)
    assert group_of(model.path) == (4, 2)
    assert hosts_of(model) == 2
    assert with_other_ranks([model], None, tmp_path / "none") == [model]
    # All ranks on this host take its own time-out again.
    (here,) = with_other_ranks([model], 4, tmp_path / "here")
    assert group_of(here.path) == (4, 1)
    assert yaml.safe_load((here.path / "model-config.yaml").read_text())["startupTimeout"] == 600
    for ranks, hosts, message in ((3, 2, "cannot share 3 ranks evenly"), (None, 2, "give --ranks too")):
        with pytest.raises(ServingError, match=message):
            with_other_ranks(models, ranks, tmp_path / "none", hosts=hosts)


def test_groups_with_other_hosts_are_told_where_to_meet(archives: Path, tmp_path: Path) -> None:
    models = find_models(archives, ["dlrm"])
    secret, ports = tmp_path / "secret", "29600-29601"
    assert meeting_environment(models, address=None, ports=ports, secret_file=secret) == {}
    assert not secret.exists()
    spread = with_other_ranks(models, 2, tmp_path / "spread", hosts=2)
    for address, message in (
        (None, "they have to find this one"),
        ("192.0.2.7", "192.0.2.7 is not an address of"),
    ):
        with pytest.raises(ServingError, match=f"is served by 2 hosts, and {message}"):
            meeting_environment(spread, address=address, ports=ports, secret_file=secret)
    told = meeting_environment(spread, address="127.0.0.1", ports=ports, secret_file=secret)
    place = MeetingPlace.from_environment(told)
    assert (place.address, place.text) == ("127.0.0.1", "127.0.0.1:29600-29601")
    assert secret.stat().st_mode & 0o777 == 0o600
    # The other hosts have a copy of it.
    assert meeting_environment(spread, address="127.0.0.1", ports=ports, secret_file=secret) == told
    assert MeetingPlace.from_environment(told).secret == place.secret
