"""A console for tables of numbers."""

from __future__ import annotations

from rich.console import Console

__all__ = ["wide_console"]

_COLUMNS = 120


def wide_console() -> Console:
    """As wide as the terminal; into a file or pipe 120 columns, where rich would take 80 and fold every cell."""
    console = Console()
    return console if console.is_terminal else Console(width=_COLUMNS)
