"""Expression that rankings sort by: ``click * purchase * price`` → a number for each candidate.

Numbers, names of outputs and of dense features, ``+ - * / **``, parentheses, a minus before a value, and the functions
of `FUNCTIONS`. A name that is not Python's stands in backquotes. No text becomes code: a parser of its own makes a list
of steps from it, which NumPy takes one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dlrm_factory.config.declaration import DLRMDeclaration
from dlrm_factory.errors import near_matches

__all__ = ["FUNCTIONS", "MAX_CHARACTERS", "Expression", "parse_expression", "ranking_expression"]

Float64 = npt.NDArray[np.float64]

MAX_CHARACTERS = 500
_MAX_STEPS = 50  # operators and functions: each is computed for every candidate
_MAX_DEPTH = 20
_MAX_LISTED = 10

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|`(?P<quoted>[^`]*)`"
    r"|(?P<sign>\*\*|[-+*/(),])"
)
# Operator → how tightly it binds the values beside it, and its step.
_BINARY: dict[str, tuple[int, Callable[..., Any]]] = {
    "+": (1, np.add),
    "-": (1, np.subtract),
    "*": (2, np.multiply),
    "/": (2, np.divide),
    "**": (4, np.power),
}
_MINUS_BINDS = 3  # -2 ** 2 is -(2 ** 2)
# Name → its step, the least and the most values that it takes.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "exp": (np.exp, 1, 1),
    "log": (np.log, 1, 1),
    "log1p": (np.log1p, 1, 1),
    "max": (np.maximum, 2, 10),
    "min": (np.minimum, 2, 10),
}


class _Step(NamedTuple):
    """Takes ``takes`` values off the stack and puts on it ``value``, that of a name, or the result of ``apply``."""

    takes: int = 0
    apply: Callable[..., Any] | None = None
    name: str | None = None
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Expression:
    """Parsed ``text``.

    Fields:
        names: outputs and dense features in it, in order.
    """

    text: str
    names: tuple[str, ...]
    steps: tuple[_Step, ...]

    @property
    def is_name(self) -> bool:
        """True if it is a name and nothing else."""
        return len(self.steps) == 1

    def __call__(self, values: Mapping[str, Float64 | float], size: int) -> Float64:
        """Float64 [size], of ``values`` [size] or one number a name. Not finite where it has no value, as 1 / 0."""
        stack: list[Any] = []
        with np.errstate(all="ignore"):
            for step in self.steps:
                taken = stack[len(stack) - step.takes :]
                del stack[len(stack) - step.takes :]
                if step.apply is not None:
                    stack.append(step.apply(*taken) if len(taken) == 1 else reduce(step.apply, taken))
                elif step.name is None:
                    stack.append(np.float64(step.value))
                else:
                    stack.append(np.asarray(values[step.name], dtype=np.float64))
        return np.broadcast_to(stack[0], size)


def ranking_expression(text: str, declaration: DLRMDeclaration) -> Expression:
    """``text`` over the probabilities and the dense features of ``declaration``; of the same name it is the output.

    ValueError says what is wrong, and where.
    """
    outputs = {output.name: output.kind for output in declaration.all_outputs}
    names = [name for name, kind in outputs.items() if kind == "probability"]
    refused = dict.fromkeys(declaration.sparse_names, "a sparse feature")
    refused |= {name: "a vector" for name, kind in outputs.items() if kind == "vector"}
    return parse_expression(text, [*names, *declaration.dense_names], refused)


def parse_expression(text: str, known: list[str], refused: Mapping[str, str] | None = None) -> Expression:
    """``text`` over the names in ``known``. ValueError says what is wrong, and where.

    ``refused``: name → what it is, of names that exist and are not numbers.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, over {MAX_CHARACTERS}; shorten it")
    return _Parser(text, known, refused or {}).parse()


class _Token(NamedTuple):
    kind: str  # number, name, quoted, sign or end
    text: str
    at: int


class _Parser:
    """Recursive descent by binding powers; steps are written in the order in which they are taken."""

    def __init__(self, text: str, known: list[str], refused: Mapping[str, str]) -> None:
        self._text = text
        self._known = known
        self._refused = refused
        self._tokens = self._split()
        self._next = 0
        self._depth = 0
        self._work = 0
        self._steps: list[_Step] = []
        self._names: list[str] = []

    def parse(self) -> Expression:
        self._value_of(0)
        left = self._tokens[self._next]
        if left.kind != "end":
            raise self._error(left, "one of + - * / ** belongs here, or the end")
        if not self._names:
            raise ValueError("it names no output and no dense feature; name what to rank by")
        return Expression(self._text, tuple(self._names), tuple(self._steps))

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        at, text = 0, self._text
        while True:
            at += len(text[at:]) - len(text[at:].lstrip())
            if at >= len(text):
                return [*tokens, _Token("end", "", at)]
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise self._error(_Token("", "", at), "this is no part of an expression")
            tokens.append(_Token(match.lastgroup, match[match.lastgroup], at))
            at = match.end()

    def _value_of(self, least: int) -> None:
        """Write the steps of the longest value from here whose operators bind at least ``least``."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(self._tokens[self._next], f"it is nested deeper than {_MAX_DEPTH}")
        self._first_value()
        while True:
            token = self._tokens[self._next]
            binds, apply = _BINARY.get(token.text, (-1, None)) if token.kind == "sign" else (-1, None)
            if apply is None or binds < least:
                break
            self._next += 1
            # The right value of ** may hold another: 2 ** 3 ** 2 is 2 ** (3 ** 2).
            self._value_of(binds if token.text == "**" else binds + 1)
            self._take(token, 2, apply)
        self._depth -= 1

    def _first_value(self) -> None:
        token = self._tokens[self._next]
        self._next += 1
        if token.kind == "number":
            value = float(token.text)
            if value == float("inf"):
                raise self._error(token, "this number is out of range")
            self._steps.append(_Step(value=value))
        elif token.kind == "name" and self._is_sign("("):
            self._function(token)
        elif token.kind in ("name", "quoted"):
            self._name(token)
        elif token.text == "-" and token.kind == "sign":
            self._value_of(_MINUS_BINDS)
            self._take(token, 1, np.negative)
        elif token.text == "(" and token.kind == "sign":
            self._value_of(0)
            self._close(token)
        else:
            raise self._error(token, 'a number, a name or "(" belongs here')

    def _function(self, token: _Token) -> None:
        if token.text not in FUNCTIONS:
            near = near_matches(token.text[:100], FUNCTIONS)
            raise self._error(token, f"there is no such function{near}; known are {', '.join(FUNCTIONS)}")
        apply, least, most = FUNCTIONS[token.text]
        opening = self._tokens[self._next]
        self._next += 1
        self._value_of(0)
        count = 1
        while self._is_sign(","):
            self._next += 1
            self._value_of(0)
            count += 1
        self._close(opening)
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise self._error(token, f"{token.text} takes {wanted} value{'s' * (most > 1)}, not {count}")
        self._take(token, count, apply)

    def _name(self, token: _Token) -> None:
        name = token.text
        if name not in self._known:
            if name in self._refused:
                raise self._error(
                    token, f'"{name}" is {self._refused[name]}; name probabilities and dense features'
                )
            near = near_matches(name[:100], self._known)
            more = f" and {len(self._known) - _MAX_LISTED} more" if len(self._known) > _MAX_LISTED else ""
            remedy = near or f"; known are {', '.join(self._known[:_MAX_LISTED])}{more}"
            raise self._error(token, f'there is no output and no dense feature "{name}"{remedy}')
        if name not in self._names:
            self._names.append(name)
        self._steps.append(_Step(name=name))

    def _take(self, token: _Token, takes: int, apply: Callable[..., Any]) -> None:
        self._work += max(1, takes - 1)
        if self._work > _MAX_STEPS:
            raise self._error(token, f"it has more than {_MAX_STEPS} operators; shorten it")
        self._steps.append(_Step(takes=takes, apply=apply))

    def _is_sign(self, sign: str) -> bool:
        token = self._tokens[self._next]
        return token.kind == "sign" and token.text == sign

    def _close(self, opening: _Token) -> None:
        if not self._is_sign(")"):
            raise self._error(opening, 'this "(" is not closed')
        self._next += 1

    def _error(self, token: _Token, problem: str) -> ValueError:
        near = self._text[token.at : token.at + 20]
        place = f'at character {token.at + 1}, near "{near}"' if near else "at its end"
        return ValueError(f"{place}: {problem}")
