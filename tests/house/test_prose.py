"""Docstrings start with a verb or a noun, and names are the field's own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = [
    "handler",
    "dlrm_factory/features",
    "dlrm_factory/requests",
    "dlrm_factory/tools/data",
    "dlrm_factory/tools/metrics",
    "dlrm_factory/tools/training",
    "scripts",
    "tests",
    "dlrm_factory/*.py",
    "dlrm_factory/batch",
    "dlrm_factory/compiled",
    "dlrm_factory/config",
    "dlrm_factory/goldens",
    "dlrm_factory/host",
    "dlrm_factory/model",
    "dlrm_factory/monitoring",
    "dlrm_factory/weights",
    "dlrm_factory/tools/*.py",
    "dlrm_factory/tools/archive",
    "dlrm_factory/tools/bench",
    "dlrm_factory/tools/cli",
    "dlrm_factory/tools/client",
    "dlrm_factory/tools/evaluation",
    "dlrm_factory/tools/importing",
    "dlrm_factory/tools/init",
    "dlrm_factory/tools/monitoring",
    "dlrm_factory/tools/rollout",
    "dlrm_factory/tools/server",
    "dlrm_factory/tools/sidecar",
    "dlrm_factory/tools/tuning",
]
# A sentence that starts with one of these is a clause, a question or a leftover of another sentence.
FIRST_WORDS = frozenset(
    [
        "What",
        "Whether",
        "Where",
        "How",
        "Why",
        "When",
        "Which",
        "Who",
        "Whose",
        "As",
        "Of",
        "By",
        "If",
        "For",
        "From",
        "In",
        "On",
        "At",
        "To",
        "With",
        "Without",
        "That",
        "It",
        "Its",
        "They",
        "This",
        "These",
        "And",
        "Or",
        "But",
        "Because",
        "So",
        "Since",
        "While",
        "Until",
        "Unless",
        "Than",
        "Then",
        "There",
    ]
)
BOUNDS = re.compile(r"(?:^|_)(?:MOST|LEAST|FEWEST|LONGEST)(?:_|$)")
CUTE = frozenset(
    [
        "fruitless",
        "refuse_strangers",
        "crowding",
        "crowded",
        "pour_into",
        "pour",
        "SidedChunk",
        "encode_ones",
        "_TELLING",
        "TELLING",
        "_UNBORN",
        "UNBORN",
        "telling_of_compiling",
    ]
)


def paths_of(room: str) -> list[Path]:
    found = sorted(ROOT.glob(room) if room.endswith(".py") else (ROOT / room).rglob("*.py"))
    assert found, f"{room}: there are no modules"
    return found


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring of a module, of its classes and of all functions, nested and private too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "lineno", 1), text


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each definition, variable, argument and attribute that is set."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def problems_of_prose(source: str) -> list[str]:
    """Problems of a module's docstrings and names, each with its line."""
    tree = ast.parse(source)
    found = []
    for line, text in docstrings(tree):
        first = re.match(r"\W*(\w*)", text)
        if first is None or first[1] in FIRST_WORDS:
            found.append(f"{line}: a docstring starts with a verb or a noun, not: {text.splitlines()[0]}")
    for line, name in names(tree):
        if BOUNDS.search(name):
            found.append(f"{line}: {name}: bounds are MAX_ and MIN_")
        if name in CUTE:
            found.append(f"{line}: {name}: use the field's term")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_and_names(room):
    problems = [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in paths_of(room)
        for problem in problems_of_prose(path.read_text(encoding="utf-8"))
    ]
    assert problems == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module holds."""',
        '"""``x``."""\ndef _f():\n    """Whether it is so."""',
        'class C:\n    def f(self):\n        """If so, this."""',
        "MOST_ROWS = 3",
        "_MAX_NAME, _LONGEST_LINE = 3, 4",
        "def crowding(): ...",
        "def f(fruitless): ...",
    ],
)
def test_a_problem_is_seen(source):
    assert len(problems_of_prose(source)) == 1


def test_plain_prose_passes():
    source = '"""Bounds on rows."""\nMAX_ROWS = 3\nalmost = 1\ndef f():\n    """Read the rows."""\n'
    assert problems_of_prose(source) == []
