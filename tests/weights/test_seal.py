"""Every damage to sealed weights is refused when they are opened, in one clear message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.batches import random_state
from support.raw_features import raw_declaration, raw_vocabularies

from dlrm_factory.errors import WeightsError
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.seal import EngineFigures, Evaluation, installed_versions, read_seal
from dlrm_factory.weights.sealed import SealedWeights, reseal, seal_folder, seal_weights

FILES = ["declaration.yaml", "dense.safetensors", "tables.bin", "vocabularies.bin", "seal.json"]


def seal(folder: Path, seed: int = 5) -> Path:
    declaration = raw_declaration()
    state = random_state(declaration, seed=seed)
    save_checkpoint(folder / "c.safetensors", declaration, state, vocabularies=raw_vocabularies())
    checkpoint = open_checkpoint(folder / "c.safetensors")
    seal_weights(checkpoint, folder / "sealed", training={"held_out_auc": "0.75"})
    return folder / "sealed"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seal(tmp_path_factory.mktemp("seal"))


@pytest.fixture
def sealed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_the_seal_says_what_was_sealed_and_by_what(original: Path) -> None:
    found = SealedWeights(original).seal
    assert sorted([*found.files, "seal.json"]) == sorted(FILES)
    assert found.files["tables.bin"].size == (original / "tables.bin").stat().st_size
    assert found.versions == installed_versions()
    assert {"torch", "torchrec", "python", "torchserve-dlrm"} <= found.versions.keys()
    assert found.training == {"held_out_auc": "0.75"}
    assert found.evaluation is None


def test_equal_weights_have_equal_seals(original: Path, tmp_path: Path) -> None:
    again = seal(tmp_path)
    assert (again / "seal.json").read_bytes() == (original / "seal.json").read_bytes()
    assert seal(tmp_path, seed=6).joinpath("seal.json").read_bytes() != (original / "seal.json").read_bytes()


def test_new_figures_keep_what_else_is_sealed(sealed: Path) -> None:
    before = read_seal(sealed)
    figures = EngineFigures(auc=0.7, auc_loss=None, log_loss=0.5, mean_difference=0.1, max_difference=0.2)
    evaluation = Evaluation(samples=3, auc=0.7, log_loss=0.5, engines={"eager": figures})
    reseal(sealed, before, evaluation=evaluation)
    after = SealedWeights(sealed).seal
    assert (after.files, after.versions, after.training) == (before.files, before.versions, before.training)
    assert after.evaluation == evaluation


def test_a_resealed_link_leaves_its_source_alone(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "linked.json").hardlink_to(sealed / "seal.json")
    before = (tmp_path / "linked.json").read_bytes()
    seal_folder(sealed, training={"held_out_auc": "0.9"})
    assert (tmp_path / "linked.json").read_bytes() == before != (sealed / "seal.json").read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(sealed: Path, name: str) -> None:
    (sealed / name).unlink()
    with pytest.raises(WeightsError, match=f"{name}: there is no such"):
        SealedWeights(sealed)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(sealed: Path, name: str) -> None:
    data = (sealed / name).read_bytes()
    for keep in (0, 1, len(data) // 2, len(data) - 2):
        (sealed / name).write_bytes(data[:keep])
        with pytest.raises(WeightsError, match=name):
            SealedWeights(sealed)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(sealed: Path, name: str) -> None:
    data = (sealed / name).read_bytes()
    places = {0, 9, 20, 30, len(data) - 3, *range(40, len(data), max(1, len(data) // 40))}
    if name == "seal.json":  # white space carries nothing
        places = {i for i in places if not data[i : i + 1].isspace()}
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 7)
        (sealed / name).write_bytes(flipped)
        with pytest.raises(WeightsError, match=name):
            SealedWeights(sealed, again=True)


def test_padding_between_tables_is_checked(sealed: Path) -> None:
    file = SealedWeights(sealed).tables
    ends = [table.offset + table.size for table in file.tables.values()]
    assert any(end % 64 for end in ends)
    data = bytearray((sealed / "tables.bin").read_bytes())
    data[next(end for end in ends if end % 64)] = 1
    (sealed / "tables.bin").write_bytes(data)
    with pytest.raises(WeightsError, match='the bytes after table "t_'):
        SealedWeights(sealed)


@pytest.mark.parametrize("name", ["dense.safetensors", "tables.bin", "seal.json"])
def test_another_archives_file_is_refused(sealed: Path, tmp_path: Path, name: str) -> None:
    other = seal(tmp_path, seed=6)
    assert (other / name).stat().st_size == (sealed / name).stat().st_size
    shutil.copy(other / name, sealed / name)
    with pytest.raises(WeightsError, match="damaged, or belongs to another archive"):
        SealedWeights(sealed)


def test_swapped_rows_of_two_tables_are_found(sealed: Path) -> None:
    tables = SealedWeights(sealed).tables.tables
    data = bytearray((sealed / "tables.bin").read_bytes())
    one, other = tables["t_user"].offset, tables["t_item"].offset
    data[one : one + 64], data[other : other + 64] = data[other : other + 64], data[one : one + 64]
    (sealed / "tables.bin").write_bytes(data)
    with pytest.raises(WeightsError, match='table "t_user" is damaged'):
        Scorer.load(sealed)


def test_a_file_that_was_not_sealed_is_refused(sealed: Path) -> None:
    (sealed / "goldens.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"goldens\.json: is not in seal\.json"):
        SealedWeights(sealed)


def changed(sealed: Path, **fields: object) -> None:
    text = json.loads((sealed / "seal.json").read_text())
    (sealed / "seal.json").write_text(json.dumps({**text, **fields}))


def test_a_seal_that_was_edited_is_refused(sealed: Path) -> None:
    changed(sealed, training={"held_out_auc": "0.99"})
    with pytest.raises(WeightsError, match=r"seal\.json: is damaged \(wrong checksum\)"):
        SealedWeights(sealed)
    changed(sealed, unknown=1)
    with pytest.raises(WeightsError, match=r"seal\.json: is damaged: .*unknown"):
        SealedWeights(sealed)


def test_a_seal_that_names_files_elsewhere_is_refused(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dlrm_factory.weights.seal as module

    files = json.loads((sealed / "seal.json").read_text())["files"]
    changed(sealed, files={**files, "../../etc/passwd": {"size": 1, "xxh3": "0"}}, xxh3="right")
    monkeypatch.setattr(module, "_own_digest", lambda seal: "right")
    with pytest.raises(WeightsError, match="names files outside its folder"):
        read_seal(sealed)


def test_a_seal_that_is_too_large_is_not_read(sealed: Path) -> None:
    with (sealed / "seal.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(WeightsError, match="so it is no seal"):
        SealedWeights(sealed)
