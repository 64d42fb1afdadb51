"""Text files that a command writes."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.errors import ConfigError

__all__ = ["write_new"]


def write_new(path: Path, text: str, *, force: bool) -> None:
    """``text`` into the file ``path``. ConfigError if it exists and is not to be replaced, or cannot be written."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(["exists; give --force to replace it"], str(path)) from None
    except OSError as error:
        raise ConfigError([f"cannot be written: {error.strerror}"], str(path)) from None
