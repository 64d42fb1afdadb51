"""YAML ↔ declaration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.config.explaining import explain
from dlrm_factory.errors import ConfigError

__all__ = ["dump_declaration", "parse_declaration", "read_declaration"]


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML that refuses a key written twice, which YAML itself would silently overwrite."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        # A sequence tagged `!!map` has no pairs; the loader below says so.
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise ConfigError([f'line {key_node.start_mark.line + 1}: the key "{key}" is written twice'])
            if isinstance(key, str):
                seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


# PyYAML lets ValueError out for a date that no calendar has, and the others for tags on text that is not of them.
_NOT_YAML = (
    yaml.YAMLError,
    ValueError,
    RecursionError,
    AttributeError,
    TypeError,
    LookupError,
    ArithmeticError,
)

_MAX_BYTES = 16 << 20
_MAX_DEPTH = 50  # a declaration has 4; PyYAML's C parser overruns the stack at some thousands
_MAX_EVENTS = 2_000_000

# YAML 1.1, which PyYAML speaks, takes 1e-3 and 1.5e3 for text: it wants a dot and a sign.
_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
# It also takes off, no and the like for booleans: `compile: off` is meant as it is written.
for _first in "yYnNoO":
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, pattern)
        for tag, pattern in _Loader.yaml_implicit_resolvers[_first]
        if tag != "tag:yaml.org,2002:bool"
    ]


def read_declaration(path: str | Path, *, code: Path | None = None) -> DLRMDeclaration:
    """The declaration in the YAML file ``path``, with the text of its files of code.

    ``code``: the folder these lie in; None for that of ``path``. ConfigError lists every mistake with its path.
    """
    path = Path(path)
    try:
        text = _read_text(path)
    except FileNotFoundError:
        raise ConfigError(["there is no such file"], str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {error}"], str(path)) from None
    declaration = parse_declaration(text, source=str(path))
    module = declaration.module
    if module is None or module.sources is not None:
        return declaration
    sources = {}
    for name in module.file_names:
        try:
            sources[name] = _read_text((code or path.parent) / name)
        except (OSError, UnicodeDecodeError) as error:
            why = (
                "there is no such file beside the declaration"
                if isinstance(error, FileNotFoundError)
                else error
            )
            raise ConfigError([f'$.architecture: "{name}": {why}'], str(path)) from None
    return msgspec.structs.replace(declaration, architecture=msgspec.structs.replace(module, sources=sources))


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES + 1).decode("utf-8")


def parse_declaration(text: str, *, source: str = "") -> DLRMDeclaration:
    """The declaration in YAML ``text``; ``source`` names it in errors."""
    if len(text) > _MAX_BYTES:
        raise ConfigError([f"is longer than {_MAX_BYTES} characters, so it is no declaration"], source)
    try:
        _check_nesting(text)
        # The loader is a SafeLoader: it builds plain data only.
        data = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise ConfigError([f"is not YAML: {_one_line(error)}"], source) from None
    except ConfigError as error:
        raise ConfigError(error.problems, source) from None
    try:
        declaration = msgspec.convert(data, DLRMDeclaration)
    except msgspec.ValidationError as error:
        raise ConfigError([explain(str(error), data)], source) from None
    problems = problems_of(declaration)
    if problems:
        raise ConfigError(problems, source)
    return declaration


def _check_nesting(text: str) -> None:
    """ConfigError for YAML that would exhaust the stack or the memory of who builds it: nested, or aliases of aliases.

    Builds nothing: only the parser's events are looked at.
    """
    depth = events = 0
    aliased: dict[str | None, int] = {}  # events within each anchor, aliases in it counted in full
    open_anchors: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_Loader):
        events += 1
        if isinstance(event, yaml.AliasEvent):
            events += aliased.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append((event.anchor, events))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, start = open_anchors.pop()
            if anchor is not None:
                aliased[anchor] = events - start
        line = event.start_mark.line + 1 if event.start_mark else 1
        if depth > _MAX_DEPTH:
            raise ConfigError([f"line {line}: is nested more than {_MAX_DEPTH} deep"])
        if events > _MAX_EVENTS:
            raise ConfigError(
                [f"line {line}: has more than {_MAX_EVENTS} values, with those that its aliases repeat"]
            )


def dump_declaration(declaration: DLRMDeclaration, *, with_sources: bool = False) -> str:
    """``declaration`` as YAML that `parse_declaration` reads to an equal one; defaults are written out.

    ``with_sources``: the text of the files of code too, which otherwise must lie beside the YAML's file.
    """
    module = declaration.module
    if module is not None and not with_sources:
        declaration = msgspec.structs.replace(
            declaration, architecture=msgspec.structs.replace(module, sources=None)
        )
    data = _without_nulls(msgspec.to_builtins(declaration))
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nulls(value) for key, value in data.items() if value is not None}
    return [_without_nulls(value) for value in data] if isinstance(data, (list, tuple)) else data


class _Dumper(yaml.SafeDumper):
    """One line an entry: features and tables are read as a table."""


def _flow_when_flat(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.Node:
    flat = not any(isinstance(value, dict) for value in data.values()) and "name" in data
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flat)


def _flow_when_numbers(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flat = all(isinstance(value, (int, float)) for value in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _escaped_when_needed(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML writes these line breaks as they are, and folds them into spaces when it reads them.
    style = '"' if any(character in data for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _escaped_when_needed)
_Dumper.add_representer(dict, _flow_when_flat)
_Dumper.add_representer(list, _flow_when_numbers)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
