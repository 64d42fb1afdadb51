"""The house: imports run one way, and only the handler's entry knows TorchServe."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up. A module imports from its own level and those below; rooms in APART keep to themselves.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("dlrm_factory.errors",),
    (
        "dlrm_factory.checked_file",
        "dlrm_factory.host_cache",
        "dlrm_factory.memory_limit",
        "dlrm_factory.tensor_rows",
        "dlrm_factory.worker_file",
    ),
    (
        "dlrm_factory.config",
        "dlrm_factory.stack",
        "dlrm_factory.java",
        "dlrm_factory.metrics",
        "dlrm_factory.delong",
    ),
    ("dlrm_factory.dtypes", "dlrm_factory.features", "dlrm_factory.batch", "dlrm_factory.hardware"),
    ("dlrm_factory.model", "dlrm_factory.held_out"),
    ("dlrm_factory.quantize", "dlrm_factory.plan", "dlrm_factory.plan_advice"),
    ("dlrm_factory.shard", "dlrm_factory.checkpoint"),
    ("dlrm_factory.weights",),
    ("dlrm_factory.factory", "dlrm_factory.compiled", "dlrm_factory.listing"),
    ("dlrm_factory.scorer",),
    ("dlrm_factory.goldens",),
    ("dlrm_factory.client", "dlrm_factory.verification"),
    (
        "handler",
        "dlrm_factory.training",
        "dlrm_factory.archive",
        "dlrm_factory.serving",
        "dlrm_factory.importing",
    ),
    ("dlrm_factory.benchmarks", "dlrm_factory.declaring", "dlrm_factory.evaluation"),
    ("dlrm_factory.cli",),
)
APART = {
    "handler",
    "dlrm_factory.training",
    "dlrm_factory.archive",
    "dlrm_factory.serving",
    "dlrm_factory.importing",
}


def sources() -> list[Path]:
    return sorted(path for package in ("dlrm_factory", "handler") for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> list[str]:
    """Every module that ``path`` imports, however deep in a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            assert node.module
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def place(module: str) -> tuple[int, str] | None:
    """(level, room) of a module of ours."""
    for level, rooms in enumerate(LEVELS):
        for room in rooms:
            if module == room or module.startswith(room + "."):
                return level, room
    return None


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    module = module_of(path)
    if module == "dlrm_factory":
        return
    own = place(module)
    assert own is not None, f"{module} has no place in the house; give it one in LEVELS"
    for name in imported(path):
        other = place(name)
        if other is None:
            assert not name.startswith(("dlrm_factory.", "handler.")), (
                f"{module} imports {name}, which has no place"
            )
            continue
        assert other[0] <= own[0], f"{module} imports {name}, which stands above it"
        if own[1] in APART and other[1] in APART:
            assert other[1] == own[1], f"{module} imports its neighbour {name}"


def test_only_the_entry_imports_torchserve():
    importing = {
        module_of(path)
        for path in sources()
        if any(name == "ts" or name.startswith("ts.") for name in imported(path))
    }
    assert importing <= {"handler.dlrm_handler"}


def test_the_check_sees_a_wrong_import():
    assert (
        place("dlrm_factory.cli.main")[0]
        > place("dlrm_factory.training.loop")[0]
        > place("dlrm_factory.config")[0]
    )
    assert place("handler.service")[0] > place("dlrm_factory.scorer")[0]


def test_every_level_has_modules():
    modules = {module_of(path) for path in sources()}
    for rooms in LEVELS:
        for room in rooms:
            assert any(module == room or module.startswith(room + ".") for module in modules), room


# Reads the index of torch.distributed.checkpoint folders, which is a pickle, with an allow-list of classes.
RESTRICTED = ROOT / "dlrm_factory" / "importing" / "dcp_metadata.py"


def names_of_modules(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_the_one_unpickler_is_restricted():
    tree = ast.parse(RESTRICTED.read_text(encoding="utf-8"))
    uses = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    ]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    restricted = [node for node in classes if any(base in uses for base in node.bases)]
    assert [use.attr for use in uses] == ["Unpickler"]
    assert len(restricted) == 1
    find_class = next(node for node in restricted[0].body if isinstance(node, ast.FunctionDef))
    assert find_class.name == "find_class"
    assert "not in _ALLOWED" in ast.unparse(find_class)
    assert "super" not in ast.unparse(find_class)


def test_no_pickle_and_no_unsafe_load():
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert path == RESTRICTED or "pickle" not in names_of_modules(path), path
        assert "torch.load(" not in text or "weights_only=True" in text, path


def test_the_handler_file_defines_one_class():
    tree = ast.parse((ROOT / "handler" / "dlrm_handler.py").read_text(encoding="utf-8"))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["DLRMHandler"]
    assert "handle" not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
