"""Text files that a command writes."""

from __future__ import annotations

from pathlib import Path

from dlrm_factory.errors import ConfigError

__all__ = ["write_new"]


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write ``text`` into the file ``path``; a file that holds just that stays.

    Raises ConfigError if another file is there and not to be replaced, or if it cannot be written.
    """
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(["exists; give --force to replace it"], str(path)) from None
    except OSError as error:
        raise ConfigError([f"cannot be written: {error.strerror}"], str(path)) from None
