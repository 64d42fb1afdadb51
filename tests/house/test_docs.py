"""Every field, property and command is documented, and links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import textwrap
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
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MAX_WORDS_OF_FIGURES = 1000


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


def anchors(document: Path) -> set[str]:
    """Anchors of a document's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_documents_lead_to_headings(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
        assert anchor in anchors(document.parent / target if target else document), f"{target}#{anchor}"


def test_every_document_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", text("README.md")))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == linked


def test_the_figures_of_today_are_short():
    """Older figures are in docs/measurements."""
    words = text("docs/performance.md").replace("|", " ").split()
    assert 100 < len(words) < MAX_WORDS_OF_FIGURES


def test_every_measurement_is_linked():
    assert "](measurements/README.md)" in text("docs/performance.md")
    linked = set(re.findall(r"\]\(([^)#]+\.md)\)", text("docs/measurements/README.md")))
    files = {path.name for path in (ROOT / "docs" / "measurements").glob("*.md")} - {"README.md"}
    assert len(files) > 2
    assert linked == files | {"../performance.md"}


def imported(block: str) -> list[tuple[str, str | None]]:
    """Modules of the project that a Python example imports, each with the name taken from it, if any."""
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(ast.parse(textwrap.dedent(block))):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] in ("dlrm_factory", "handler")]


def test_examples_import_from_the_public_modules_alone():
    blocks = [
        (document.name, block)
        for document in DOCUMENTS
        for block in re.findall(
            r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
    ]
    uses = [(document, *use) for document, block in blocks for use in imported(block)]
    assert {module for _, module, _ in uses} == {"dlrm_factory", "dlrm_factory.client"}
    for document, module, name in uses:
        assert name in (None, *importlib.import_module(module).__all__), f"{document}: {name} of {module}"


def test_the_demo_prints_the_commands_of_the_readme():
    here_document = re.search(r"^ *cat <<END\n.*?^END\n", text("scripts/demo"), re.DOTALL | re.MULTILINE)
    assert here_document
    script = f"url=http://127.0.0.1:8080 run_dir=.dlrm\n{here_document[0]}"
    printed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert "/predictions/dlrm" in printed
    assert f"```bash\n./scripts/demo --keep\n{printed}```\n" in text("README.md")
