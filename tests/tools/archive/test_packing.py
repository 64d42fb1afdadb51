"""Code that an archive carries: it runs with nothing but a server's packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dlrm_factory.tools.archive.staging as packing
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive.staging import HANDLER_FILE, LEFT_OUT, pack_code

# What a server host has. `ts` is TorchServe itself.
ALLOWED = {
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "filelock",
    "numpy",
    "msgspec",
    "safetensors",
    "xxhash",
    "yaml",
    "ts",
}
OURS = {"dlrm_factory", "handler"}
# What a server host may have. Without pyarrow a request in Arrow gets an error of its own; without simdjson decoding
# is slower.
OPTIONAL = {
    "dlrm_factory/features/arrow.py": {"pyarrow"},
    "dlrm_factory/requests/formats/columns/fast.py": {"simdjson"},
}
# Front doors of the tools, packed with the folder they lie in; an archive lacks what is behind them.
DOORS = {"dlrm_factory/__init__.py", "dlrm_factory/cli.py", "dlrm_factory/client.py"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_code(folder)
    return folder


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_serving_code_is_packed_and_the_rest_is_not(packed: Path) -> None:
    names = {path.relative_to(packed).as_posix() for path in packed.rglob("*") if path.is_file()}
    assert {
        "dlrm_handler.py",
        "dlrm_factory/__init__.py",
        "dlrm_factory/errors.py",
        "dlrm_factory/scorer.py",
        "dlrm_factory/config/reading.py",
        "dlrm_factory/weights/sealed.py",
        "handler/__init__.py",
    } <= names
    assert "handler/dlrm_handler.py" not in names
    assert not (packed / "dlrm_factory" / LEFT_OUT).exists()
    assert {Path(name).suffix for name in names} <= {".py", ".typed"}
    assert not any("__pycache__" in name or "test" in name for name in names)


def test_nothing_packed_imports_what_is_left_out_or_a_server_lacks(packed: Path) -> None:
    for path in packed.rglob("*.py"):
        for name in imports_of(path):
            top = name.partition(".")[0]
            optional = OPTIONAL.get(path.relative_to(packed).as_posix(), set())
            assert top in sys.stdlib_module_names | ALLOWED | OURS | optional, (
                f"{path}: a server host may lack {top}"
            )
            if path.relative_to(packed).as_posix() not in DOORS:
                assert not name.startswith(f"dlrm_factory.{LEFT_OUT}"), f"{path}: {name} is not packed"
            assert top != "ts" or path.name == HANDLER_FILE, f"{path}: only {HANDLER_FILE} may import ts"


IMPORT_ALL = """
import importlib, pathlib, sys
folder = pathlib.Path(sys.argv[1])
names = [".".join(path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
for name in names:
    if name in ("dlrm_factory.cli", "dlrm_factory.client"):
        continue
    name = name.removesuffix(".__init__")
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(folder), (name, module.__file__)
for name in ("typer", "rich", "pyarrow", "httpx", "matplotlib", "psutil", "dlrm_factory.tools"):
    assert name not in sys.modules, name
print(len(names))
"""


@pytest.mark.slow
def test_every_packed_module_imports_from_the_archive_alone(packed: Path) -> None:
    # -S: no .pth file runs, so an editable installation of this project cannot help out.
    site = [path for path in sys.path if path.endswith("-packages")]
    code = f"import sys; sys.path[:0] = [sys.argv[1]]; sys.path += {site!r}\n{IMPORT_ALL}"
    ran = subprocess.run(
        [sys.executable, "-S", "-s", "-E", "-c", code, str(packed)],
        cwd=packed,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) == len(list(packed.rglob("*.py")))


def test_a_broken_installation_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArchiveError, match='package "dlrm_factory" is not installed'):
        pack_code(tmp_path)
