"""msgspec's complaints about a declaration's types, said for people: what was found, what is allowed."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import near_matches

__all__ = ["explain"]

_AT = re.compile(r"(?P<what>.+?)(?: - at (?P<key>`key` in )?`(?P<path>.+)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.+)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.+)`")
_CHOICE = re.compile(r"Invalid enum value (?P<value>.+)", re.DOTALL)
_TYPE = re.compile(r"Expected `(?P<expected>.+)`, got `(?P<found>.+)`")
_STEP = re.compile(r"\.(?P<field>\w+)|\[(?P<index>\d+)\]")

# TorchRec's other sharding types: why not, and what instead.
_NOT_OFFERED = {
    "grid_shard": "TorchRec pools means wrongly under it, without an error; use row_wise or column_wise",
    "table_row_wise": "it is row_wise kept to one host; use row_wise",
    "table_column_wise": "it is column_wise kept to one host; use column_wise",
}

_WORDS = {
    "object": "a mapping of fields",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "nothing",
}


def explain(message: str, data: Any) -> str:
    """msgspec's ``message`` on ``data`` as ``$.tables[2].poolin: unknown field; did you mean "pooling"?``."""
    match = _AT.fullmatch(message)
    assert match is not None
    what, path = match["what"], match["path"] or "$"
    if unknown := _UNKNOWN.fullmatch(what):
        return f"{path}.{unknown['field']}: unknown field{_or_known(unknown['field'], _fields(path))}"
    if missing := _MISSING.fullmatch(what):
        return f"{path}.{missing['field']}: is missing"
    choices = _choices(path)
    if choice := _CHOICE.fullmatch(what):
        value = choice["value"].strip("'")
        if path.endswith(".sharding") and value in _NOT_OFFERED:
            return f'{path}: "{value}" is not offered: {_NOT_OFFERED[value]}'
        return f'{path}: "{value}" is not one of {", ".join(choices)}{near_matches(value, choices)}'
    if match["key"]:
        return f"{path}: a field's name must be text"
    if types := _TYPE.fullmatch(what):
        wanted = f"one of {', '.join(choices)}" if choices else _in_words(types["expected"])
        return f"{path}: must be {wanted}, but is {_found(types['found'], path, data)}"
    return f"{path}: {what}"


def _or_known(field: str, known: list[str]) -> str:
    return near_matches(field, known) or (f"; known are {', '.join(known)}" if known else "")


def _in_words(types: str) -> str:
    return " or ".join(_WORDS.get(name, name) for name in types.split(" | "))


def _found(kind: str, path: str, data: Any) -> str:
    """Describe the value at ``path``: its kind, and the value itself when it is short."""
    value = data
    try:
        for step in _STEP.finditer(path):
            value = value[step["field"]] if step["field"] else value[int(step["index"])]
    except (LookupError, TypeError):
        return _in_words(kind)
    shown = repr(value)
    if isinstance(value, (dict, list)) or value is None or len(shown) > 60:
        return _in_words(kind)
    return f"{_in_words(kind)}: {shown}"


def _hint_at(path: str) -> Any:
    """The type declared for ``path``, or for the list it lies in; None where there is no such path."""
    hint: Any = DLRMDeclaration
    for name in re.findall(r"\.(\w+)", path):
        struct = _struct_in(hint)
        hint = get_type_hints(struct).get(name) if struct else None
    return hint


def _struct_in(hint: Any) -> Any:
    """``Table`` of ``Table``, ``list[Table]`` or ``Table | None``; None if there is no struct in ``hint``."""
    return next((part for part in (hint, *get_args(hint)) if hasattr(part, "__struct_fields__")), None)


def _fields(path: str) -> list[str]:
    return list(getattr(_struct_in(_hint_at(path)), "__struct_fields__", ()))


def _choices(path: str) -> list[str]:
    hint = _hint_at(path)
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    choices = [str(value) for literal in literals for value in get_args(literal)]
    return [*choices, _WORDS["int"]] if choices and int in get_args(hint) else choices
