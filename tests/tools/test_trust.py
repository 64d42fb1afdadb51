"""A stranger's code, as a user meets it on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.nets import NETS
from typer.testing import CliRunner

from dlrm_factory.config import read_declaration
from dlrm_factory.config.trust import TRUST_VARIABLE, is_trusted, trust_code
from dlrm_factory.errors import UntrustedCodeError
from dlrm_factory.model.model import table_weight_key
from dlrm_factory.tools.archive.archive_code import code_in
from dlrm_factory.tools.archive.staging import pack_code
from dlrm_factory.tools.archive.verification import verify
from dlrm_factory.tools.bench.score import RandomWeights
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.trust import recall_trust, trust_own_code
from dlrm_factory.weights.checkpoint import open_checkpoint, save_checkpoint
from dlrm_factory.weights.sealed import seal_weights


@pytest.fixture(autouse=True)
def _a_user_who_trusts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRUST_VARIABLE, "")
    monkeypatch.setenv("DLRM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A declaration whose code leaves a file behind when it runs."""
    folder = tmp_path / "strange"
    folder.mkdir()
    code = (NETS / "dcn_v2.py").read_text()
    (folder / "dcn_v2.py").write_text(f"{code}\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (folder / "model.yaml").write_text((NETS / "dcn_v2.yaml").read_text())
    return folder / "model.yaml"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_plan_runs_none_of_it(strange: Path, tmp_path: Path) -> None:
    assert "t_user" in run("plan", strange)
    assert not (tmp_path / "ran").exists()


def test_an_import_asks_first(strange: Path, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UntrustedCodeError, match=r"dcn_v2\.py.*give --trust-code"):
        run("import", tmp_path / "w.pt", "--config", strange, "--output", tmp_path / "c.safetensors")
    assert not (tmp_path / "ran").exists()


def test_verifying_lists_the_code_and_asks_before_it_runs(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = read_declaration(strange)
    trust_own_code(declaration)
    seal_weights(RandomWeights(declaration), tmp_path / "sealed")
    (tmp_path / "ran").unlink()
    monkeypatch.setenv(TRUST_VARIABLE, "")
    with pytest.raises(UntrustedCodeError, match=r"every file is as it was sealed.*module/dcn_v2\.py"):
        run("verify", tmp_path / "sealed")
    assert not (tmp_path / "ran").exists()
    # What this user has trained with is remembered.
    recall_trust()
    assert is_trusted(declaration)
    assert "1 file of code is of the model's own dense net: module/dcn_v2.py" in run(
        "verify", tmp_path / "sealed"
    )


def test_the_error_has_the_declaration_to_read_and_to_trust(
    strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = read_declaration(strange)
    trust_own_code(declaration)
    weights = RandomWeights(declaration)
    state = dict(weights.dense_state())
    for table in declaration.tables:
        state[table_weight_key(table.name)] = weights.table_rows(table.name, 0, table.num_embeddings)
    save_checkpoint(tmp_path / "c.safetensors", declaration, state)
    seal_weights(weights, tmp_path / "sealed")
    (tmp_path / "ran").unlink()
    for opened in (
        lambda: open_checkpoint(tmp_path / "c.safetensors"),
        lambda: verify(tmp_path / "sealed"),
    ):
        monkeypatch.setenv(TRUST_VARIABLE, "")
        with pytest.raises(
            UntrustedCodeError, match=r"dlrm_factory\.trust_code\(error\.declaration\)"
        ) as caught:
            opened()
        assert not (tmp_path / "ran").exists()
        found = caught.value.declaration
        assert found.module is not None
        assert found.module.sources == {"dcn_v2.py": (strange.parent / "dcn_v2.py").read_text()}
        trust_code(found)
        opened()


def test_the_option_trusts_for_this_command_alone(strange: Path, tmp_path: Path) -> None:
    run("plan", strange, "--trust-code")
    assert not (tmp_path / "cache" / "trusted-code").exists()


def test_code_is_told_by_whose_it_is(tmp_path: Path) -> None:
    pack_code(tmp_path)
    (tmp_path / "handler" / "worker.py").write_text("import os\n")
    (tmp_path / "dlrm_factory" / "extra.py").write_text("")
    (tmp_path / "evil.pth").write_text("")
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "net.py").write_text("")
    found = code_in(tmp_path)
    assert found.changed == ("dlrm_factory/extra.py", "handler/worker.py")
    assert found.module == ("module/net.py",)
    assert found.other == ("evil.pth",)
    assert {"dlrm_handler.py", "dlrm_factory/scorer.py"} <= set(found.installed)
    assert found.sentences() == [
        f"{len(found.installed)} files of code are of torchserve-dlrm as it is installed here",
        "2 files of code differ from the torchserve-dlrm that is installed here: dlrm_factory/extra.py, "
        "handler/worker.py",
        "1 file of code is of the model's own dense net: module/net.py",
        "1 file of code is somebody else's: evil.pth",
    ]
