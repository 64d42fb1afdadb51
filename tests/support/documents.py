"""Examples of the documents, to be run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def python_examples(document: str) -> list[str]:
    """Python blocks of ``document``, a path below the repository's root, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_examples(examples: list[str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run ``examples`` one after the other, in the working folder, over ``names``; the names they leave."""
    names = {} if names is None else names
    for number, code in enumerate(examples, start=1):
        exec(compile(code, f"example {number}", "exec"), names)
    return names
