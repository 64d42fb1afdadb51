"""The house: imports run one way, and only the handler's entry knows TorchServe."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]


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


MODULES = {module_of(path): path for path in sources()}
# Public names for what lies deeper; `dlrm_factory` itself looks its names up when they are asked for.
DOORS = {"dlrm_factory", "dlrm_factory.cli", "dlrm_factory.client"}


def room_of(module: str) -> str:
    """Folder of a module, such as ``handler`` or ``dlrm_factory.tools.data``; a module beside folders is its own."""
    parts = module.split(".")
    if parts[0] == "handler":
        return "handler"
    return ".".join(parts[: 3 if parts[:2] == ["dlrm_factory", "tools"] else 2])


def module_in(name: str) -> str | None:
    """The module of ours that ``name``, of a module or of something in one, stands for."""
    if name in MODULES:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in MODULES else None


def imports_of(module: str) -> set[str]:
    """Modules of ours that ``module`` imports."""
    return {found for name in imported(MODULES[module]) if (found := module_in(name))} - {module}


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Rooms that import one another in a circle; none if there is no circle."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module in MODULES.keys() - DOORS:
        room = room_of(module)
        graph.setdefault(room, set()).update(room_of(name) for name in imports_of(module) - DOORS)
        graph[room].discard(room)
    return graph


def test_rooms_import_one_way():
    graph = rooms()
    assert {
        "handler",
        "dlrm_factory.config",
        "dlrm_factory.requests",
        "dlrm_factory.tools.cli",
    } <= graph.keys()
    assert cycle_in(graph) == []


def test_a_circle_is_seen():
    graph = rooms()
    assert cycle_in({**graph, "dlrm_factory.config": {"dlrm_factory.scorer"}}) != []


def test_nothing_below_the_tools_imports_them():
    for module in MODULES.keys() - DOORS:
        if not module.startswith("dlrm_factory.tools"):
            below = [name for name in imports_of(module) if name.startswith("dlrm_factory.tools")]
            assert below == [], f"{module} imports a tool"


def test_nothing_imports_the_handler():
    for module in MODULES:
        if not module.startswith("handler"):
            assert [name for name in imports_of(module) if name.startswith("handler")] == [], module


def test_only_the_entry_imports_torchserve():
    importing = {
        module_of(path)
        for path in sources()
        if any(name == "ts" or name.startswith("ts.") for name in imported(path))
    }
    assert importing <= {"handler.dlrm_handler"}


def strings_in(path: Path) -> set[str]:
    """Every string that the code of ``path`` uses: no docstrings, no names in ``__all__``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            unused |= {id(name) for name in ast.walk(node.value)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in unused
    }


# Starts TorchServe, and reads the log of one.
SERVER = "dlrm_factory.tools.server"
# Written by TorchServe beside a request's headers, or in place of them.
TORCHSERVE_HEADERS = {"explain", "describe", "url_path", "body", "data", "ts_stream_next"}


def test_only_the_handler_knows_torchserves_modules():
    outside = [path for path in sources() if not module_of(path).startswith(("handler", SERVER))]
    assert len(outside) > 200
    for path in outside:
        assert [text for text in strings_in(path) if text.startswith("ts.")] == [], path
        assert "sys.modules" not in path.read_text(encoding="utf-8"), path
    assert "ts.service" in strings_in(ROOT / "handler" / "worker.py")


def test_requests_know_none_of_torchserves_headers():
    for path in (ROOT / "dlrm_factory" / "requests").rglob("*.py"):
        # A tensor of KServe has "data" too.
        allowed = {"data"} if "kserve" in path.parts else set()
        assert strings_in(path) & TORCHSERVE_HEADERS <= allowed, path
    assert {"explain", "describe", "url_path", "body"} <= strings_in(ROOT / "handler" / "request.py")


# Reads the index of torch.distributed.checkpoint folders, which is a pickle, with an allow-list of classes.
RESTRICTED = ROOT / "dlrm_factory" / "tools" / "importing" / "dcp_metadata.py"


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
