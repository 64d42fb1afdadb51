"""`dlrm preset`, `dlrm stage`, `dlrm archive` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dlrm_factory.config import criteo, parse_declaration, read_declaration, tiny
from dlrm_factory.errors import ArchiveError, ConfigError
from dlrm_factory.tools.cli.archive import archive, stage
from dlrm_factory.tools.cli.declarations import preset


def run(*words: str | Path) -> str:
    app = typer.Typer()
    for command in (preset, stage, archive):
        app.command()(command)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception:
        raise result.exception
    return result.stdout


def test_archive_prints_what_it_made(checkpoint: Path, tmp_path: Path) -> None:
    out = run("archive", checkpoint, "--output", tmp_path / "dlrm.mar")
    assert out.startswith(f"made {tmp_path / 'dlrm.mar'}: model dlrm 1.0, ")
    assert (tmp_path / "dlrm.mar").is_file()
    # Its weights are drawn: nothing was held out.
    assert "it has no reference of drift, which takes 1,000 held-out samples" in out


def test_archive_prints_json(checkpoint: Path, tmp_path: Path) -> None:
    words = ["--model-name", "shop", "--version", "2.1", "--format", "directory", "--json"]
    made = json.loads(run("archive", checkpoint, "-o", tmp_path / "shop", *words))
    assert {key: made[key] for key in ("path", "model_name", "version", "format")} == {
        "path": str(tmp_path / "shop"),
        "model_name": "shop",
        "version": "2.1",
        "format": "directory",
    }
    assert made["bytes"] == sum(made["files"].values())
    assert (tmp_path / "shop/tables.bin").stat().st_size == made["files"]["tables.bin"]


def test_archive_goes_to_the_model_store_under_the_models_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("archive", checkpoint)
    run("archive", checkpoint, "--model-name", "shop", "--format", "directory")
    assert Path("model_store/dlrm.mar").is_file()
    assert Path("model_store/shop").is_dir()
    with pytest.raises(ArchiveError, match="exists; give --force"):
        run("archive", checkpoint)
    run("archive", checkpoint, "--force")


def test_stage_prints_the_command(checkpoint: Path, tmp_path: Path) -> None:
    out = run("stage", checkpoint, "-o", tmp_path / "staged")
    assert "torch-model-archiver --model-name dlrm --version 1.0 --handler " in out
    assert (tmp_path / "staged/dlrm_handler.py").is_file()
    made = json.loads(run("stage", checkpoint, "-o", tmp_path / "staged", "--force", "--json"))
    assert made["folder"] == str(tmp_path / "staged")
    assert made["command"] in out


def test_preset_prints_yaml() -> None:
    assert parse_declaration(run("preset", "tiny")) == tiny()
    shown = parse_declaration(run("preset", "criteo", "--cap", "500", "--raw", "--dtype", "fp16"))
    assert shown == criteo(cap=500, raw=True, dtype="fp16")
    assert parse_declaration(run("preset", "criteo")) == criteo()


def test_preset_writes_a_file(tmp_path: Path) -> None:
    run("preset", "demo", "-o", tmp_path / "shop.yaml")
    run("preset", "demo", "-o", tmp_path / "shop.yaml")  # the same is there already
    with (tmp_path / "shop.yaml").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    with pytest.raises(ConfigError, match="exists; give --force"):
        run("preset", "demo", "-o", tmp_path / "shop.yaml")
    run("preset", "tiny", "-o", tmp_path / "shop.yaml", "--force")
    assert read_declaration(tmp_path / "shop.yaml") == tiny()
    with pytest.raises(ConfigError, match="cannot be written"):
        run("preset", "tiny", "-o", tmp_path / "none/shop.yaml")


def test_preset_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match='no preset "criteoo"; did you mean "criteo"'):
        run("preset", "criteoo")
    with pytest.raises(ConfigError, match="preset tiny takes no --cap"):
        run("preset", "tiny", "--cap", "5")
