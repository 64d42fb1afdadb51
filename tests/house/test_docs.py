"""Every field, property and command is documented, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlrm_factory.config import (
    DenseFeature,
    DLRMDeclaration,
    ServingOptions,
    ShardingOptions,
    SparseFeature,
    Table,
    TrainingOptions,
)
from dlrm_factory.tools.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "struct",
    [DLRMDeclaration, DenseFeature, SparseFeature, Table, ShardingOptions, ServingOptions, TrainingOptions],
    ids=lambda struct: struct.__name__,
)
def test_every_field_of_the_declaration_is_documented(struct):
    documented = set(re.findall(r"`([a-z0-9_]+)`", text("docs/declaration.md")))
    assert set(struct.__struct_fields__) - documented == set()


def test_every_server_setting_is_documented():
    keys = re.findall(r"^([a-z_]+)=", text("config.properties"), flags=re.MULTILINE)
    assert len(keys) > 15
    assert [key for key in keys if f"`{key}`" not in text("docs/serving.md")] == []


def test_every_command_is_in_the_readme():
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    names += [group.name for group in app.registered_groups]
    assert [name for name in names if f"dlrm {name}" not in text("README.md")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_document_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", text("README.md")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == linked
