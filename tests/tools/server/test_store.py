from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.batches import random_state

from dlrm_factory.config import tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server import store as store_module
from dlrm_factory.tools.server.store import check_space, find_models, unpacked_bytes
from dlrm_factory.weights.checkpoint import save_checkpoint


def test_a_name_and_an_archive(store, add_archive):
    path = add_archive()
    (model,) = find_models(store, ["mine=dlrm.mar"])
    assert (model.name, model.location, model.path, model.spec) == ("mine", "dlrm.mar", path, "mine=dlrm.mar")


def test_without_a_name_the_archives_own_is_taken(store, add_archive):
    add_archive("any.mar")
    assert find_models(store, ["any.mar"])[0].name == "dlrm"


def test_all_means_every_archive(store, add_archive):
    for name in ("b", "a"):
        add_archive(f"{name}.mar", {"model": {"modelName": name, "handler": "h.py"}})
    (store / "README.md").write_text("")
    assert [model.spec for model in find_models(store, ["all"])] == ["a=a.mar", "b=b.mar"]


def test_a_path_into_the_store_becomes_a_name(store, add_archive, monkeypatch):
    add_archive()
    monkeypatch.chdir(store.parent)
    assert find_models(store, ["x=model_store/dlrm.mar"])[0].location == "dlrm.mar"


def test_a_folder_may_lie_anywhere(store, tmp_path):
    folder = tmp_path / "staged"
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "h.py").write_text("class H: ...\n")
    manifest = {"model": {"modelName": "m", "handler": "h.py"}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (model,) = find_models(store, [str(folder)])
    assert model.spec == f"m={folder}"
    assert unpacked_bytes(folder) == 0


def test_a_missing_archive_names_near_matches_and_what_is_there(store, add_archive):
    add_archive()
    with pytest.raises(
        ServingError, match=r'no archive "dlm.mar".*did you mean "dlrm.mar".*it holds dlrm.mar'
    ):
        find_models(store, ["dlrm=dlm.mar"])


def test_an_empty_store_says_how_to_fill_it(store):
    with pytest.raises(ServingError, match="it is empty: make one with `dlrm archive`"):
        find_models(store, ["dlrm=dlrm.mar"])


def test_a_missing_store(tmp_path):
    with pytest.raises(ServingError, match="nowhere does not exist"):
        find_models(tmp_path / "nowhere", ["dlrm=dlrm.mar"])


def test_an_archive_elsewhere_must_move(store, tmp_path, add_archive):
    other = tmp_path / "other.mar"
    add_archive().rename(other)
    with pytest.raises(ServingError, match="is not in model store"):
        find_models(store, [f"dlrm={other}"])


@pytest.mark.parametrize("spec", ["=dlrm.mar", "dlrm=", ""])
def test_a_spec_that_is_not_one(store, spec):
    with pytest.raises(ServingError, match="is not NAME=ARCHIVE"):
        find_models(store, [spec])


def test_a_name_that_would_not_fit_into_a_url(store, add_archive):
    add_archive()
    with pytest.raises(ServingError, match="may not hold '/'"):
        find_models(store, ["a/b=dlrm.mar"])


def test_two_models_of_one_name(store, add_archive):
    add_archive()
    add_archive("b.mar")
    with pytest.raises(ServingError, match='two of --models are named "dlrm"'):
        find_models(store, ["dlrm.mar", "b.mar"])


def test_a_name_that_torchserve_refuses(store, add_archive):
    add_archive("a..b.mar")
    with pytest.raises(ServingError, match="rename it"):
        find_models(store, ["a..b.mar"])


def test_broken_archives(store, add_archive):
    whole = add_archive("cut.mar", size=5000).read_bytes()
    (store / "cut.mar").write_bytes(whole[:3000])
    (store / "text.mar").write_text("not a zip")
    (store / "text.tar.gz").write_text("not a tarball")
    add_archive("list.mar", [])
    add_archive("nohandler.mar", {"model": {"modelName": "x"}})
    reasons = {
        "cut.mar": "not a zip file",
        "text.mar": "not a zip file",
        "text.tar.gz": "not a gzipped tar",
        "list.mar": 'has no "model"',
        "nohandler.mar": "names no handler",
    }
    for name, reason in reasons.items():
        with pytest.raises(ServingError, match=f"{name} is broken.*{reason}"):
            find_models(store, [f"x={name}"])


def test_no_room_to_unpack(store, add_archive, monkeypatch):
    add_archive(size=5_000)
    models = find_models(store, ["dlrm.mar"])
    check_space(models, store)
    usage = type("Usage", (), {"free": 4_000})
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ServingError, match=r"unpacking the archives takes 5\.1 KB, but .* has 4\.0 KB free"):
        check_space(models, store)


def test_no_room_by_a_few_bytes_shows_numbers_that_differ(store, add_archive, monkeypatch):
    add_archive(size=5_000_000)
    models = find_models(store, ["dlrm.mar"])
    needed = unpacked_bytes(models[0].path)
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ServingError, match=rf"takes {needed:,} bytes, but .* has {needed - 1:,} free"):
        check_space(models, store)


def test_an_archive_is_checked_without_torch(tmp_path):
    """`dlrm serve` reads its seal and its declaration in milliseconds."""
    path = tmp_path / "tiny.mar"
    save_checkpoint(tmp_path / "tiny.safetensors", tiny(), random_state(tiny()))
    archive_model(tmp_path / "tiny.safetensors", path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import dlrm_factory.tools.cli.serve\n"
        "from dlrm_factory.tools.archive.reading import read_archive_declaration\n"
        "from dlrm_factory.tools.server.store import find_models\n"
        f"path = Path({str(path)!r})\n"
        "(found,) = find_models(path.parent, ['tiny=tiny.mar'])\n"
        "assert found.name == 'tiny' and read_archive_declaration(path).tables\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
