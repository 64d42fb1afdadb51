"""The error trees that docstrings draw are those of the classes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [
    ast.parse(path.read_text(encoding="utf-8"))
    for package in ("dlrm_factory", "handler")
    for path in sorted((ROOT / package).rglob("*.py"))
]
DRAWN = re.compile(r"^(?P<indent>[ │]*)(?:[├└]── )?(?P<name>[A-Z]\w*)(?:  |$)", re.MULTILINE)


def parents_of_classes() -> dict[str, str]:
    """Parent of each class that derives from DLRMError, by name, from the sources."""
    bases = {
        node.name: node.bases[0].id
        for module in MODULES
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name)
    }
    found: dict[str, str] = {}
    names = {"DLRMError"}
    while names:
        children = {name: base for name, base in bases.items() if base in names}
        found |= children
        names = set(children)
    return found


def pictures() -> list[dict[str, str]]:
    """Drawn trees: each name's parent, by name; one dict a module."""
    docstrings = [ast.get_docstring(module) or "" for module in MODULES]
    return [parents_drawn(text) for text in docstrings if "DLRMError" in text and "└──" in text]


def parents_drawn(docstring: str) -> dict[str, str]:
    parents, above = {}, {}
    for match in DRAWN.finditer(docstring.partition("::\n")[2]):
        # A name stands four columns to the right of its parent's.
        above[match.start("name") - match.start()] = match["name"]
        parent = above.get(match.start("name") - match.start() - 4)
        if parent is not None:
            parents[match["name"]] = parent
    return parents


def test_a_picture_is_read_as_it_is_drawn():
    drawn = ["::", "    A         root", "    ├── B     one", "    │   └── C  its child", "    └── D     two"]
    assert parents_drawn("\n".join(drawn)) == {"B": "A", "C": "B", "D": "A"}


def test_every_error_is_drawn_under_its_parent():
    drawn = pictures()
    assert len(drawn) == 2
    assert drawn[0] | drawn[1] == parents_of_classes()
    assert all(drawn[0].get(name, parent) == parent for name, parent in drawn[1].items())
