"""`dlrm serve --ranks` without a server."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.batches import random_batch, random_state, uncompiled

from dlrm_factory.config import dump_declaration, tiny
from dlrm_factory.config.declaration import ShardingOptions
from dlrm_factory.errors import ServingError
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.model_config import ranks_of
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server.ranks import with_other_ranks
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
    assert ranks_of(model.path) == 2
    assert ranks_of(models[0].path) == 1
    # With the same weights, and fit to be served again.
    batch = random_batch(tiny(), 3)
    assert (
        Scorer.load(model.path).logits(batch).tolist()
        == Scorer.load(archives / "dlrm").logits(batch).tolist()
    )
    assert with_other_ranks([model], 2, tmp_path / "again") == [model]
    (alone,) = with_other_ranks([model], 1, tmp_path / "alone")
    assert ranks_of(alone.path) == 1


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


def test_several_hosts_are_refused_unless_a_number_is_given(archives: Path, tmp_path: Path) -> None:
    (model,) = with_other_ranks(find_models(archives, ["dlrm"]), 2, tmp_path)
    sharding = ShardingOptions(world_size=4, hosts=2)
    text = dump_declaration(msgspec.structs.replace(tiny(), sharding=sharding))
    (model.path / "declaration.yaml").unlink()
    (model.path / "declaration.yaml").write_text(text)
    with pytest.raises(ServingError, match=r"declares 4 ranks on 2 hosts, .*; give --ranks 4, or fewer"):
        with_other_ranks([model], None, tmp_path / "none")
    assert with_other_ranks([model], 2, tmp_path / "none") == [model]
