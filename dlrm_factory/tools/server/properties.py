"""Java's ``.properties`` text: read it, and change keys in place so that comments stay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["ENCODING", "load_properties", "read_properties", "with_properties"]

# What java.util.Properties.load reads; everything else is written \uXXXX.
ENCODING = "latin-1"

# Java's idea of line ends and blanks is narrower than Python's.
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = " \t\f"
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SEPARATOR = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def load_properties(path: Path) -> dict[str, str]:
    """The keys and values of the file at ``path``. Raises ``OSError`` when it cannot be read."""
    return read_properties(path.read_text(encoding=ENCODING))


def read_properties(text: str) -> dict[str, str]:
    """The keys and values of ``text``; of a repeated key the last counts, as in Java."""
    return {key: value for _, key, value in _entries(text) if key}


def with_properties(text: str, changes: Mapping[str, str]) -> str:
    """``text`` with each key of ``changes`` set: in place where it has the key, else at the end."""
    left, lines = dict(changes), []
    for raw, key, _ in _entries(text):
        if key in changes:
            # A key given twice is written once: the first line takes the new value.
            if key in left:
                lines.append(_line(key, left.pop(key)))
        else:
            lines.append(raw)
    lines += [_line(key, value) for key, value in left.items()]
    return "\n".join(lines) + "\n"


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Each logical line as (raw lines, key, value); key is empty for comments and blank lines."""
    lines = iter(_LINE_END.split(text.removesuffix("\n")))
    for raw in lines:
        logical = raw.lstrip(_BLANK)
        if not logical or logical[0] in "#!":
            yield raw, "", ""
            continue
        while _continues(logical):
            following = next(lines, "")
            raw += "\n" + following
            logical = logical[:-1] + following.lstrip(_BLANK)
        match = _SEPARATOR.match(logical)
        assert match is not None, "the pattern matches every line"
        yield raw, _unescape(match[1]), _unescape(match[2])


def _continues(line: str) -> bool:
    """An odd number of backslashes at the end joins the next line."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        found = match[1]
        return chr(int(found[1:], 16)) if len(found) == 5 else _CONTROL.get(found, found)

    # Beyond 16 bits Java writes two escapes; together they are one character.
    return _ESCAPE.sub(plain, text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _line(key: str, value: str) -> str:
    return f"{_escape(key, also='=: ')}={_escape(value)}"


def _escape(text: str, also: str = "") -> str:
    out = []
    for index, char in enumerate(text):
        if char == "\\" or char in also or (char == " " and index == 0):
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        else:
            units = char.encode("utf-16-be")
            out += [f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)]
    return "".join(out)
