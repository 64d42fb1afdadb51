"""JSON bodies for the `tiny` preset, as text, so that what Python cannot hold or would write otherwise is there too."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st

from dlrm_factory.config import tiny

__all__ = ["bodies", "damaged", "ranking_bodies", "upstream_bodies"]

NUMBER = st.one_of(  # of what only looks like a number, too
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-3, 210).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        [
            "-0",
            "0",
            "-0.0",
            "3.0",
            "1e2",
            "1E+2",
            "1e-400",
            "1e39",
            "1e308",
            "1e309",
            "9223372036854775807",
            "9223372036854775808",
            "-1",
            "01",
            "1.",
            ".5",
            "+1",
            "NaN",
            "-997",
            "-997.0",
            "-9.97e2",
            "null1",
            "1null",
            "-null",
            "1enull",
            "null.0",
        ]
    ),
)
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(json.dumps),
    st.sampled_from(['"17"', '"\\ud800"', '"[1]"', '"a:b"', '"\x00"', '"\\u005b"']),
)
ODD = st.sampled_from(
    ["null", "true", "false", "[]", "{}", "[[]]", "[[1]]", '{"ids":[1]}', "[null]", "[1,[2]]"]
)
ID = st.one_of(st.integers(0, 49).map(str), st.integers(0, 49).map(str), st.sampled_from(["-997", "null"]))
BAG = st.one_of(ID, st.lists(ID, max_size=3).map(lambda ids: "[" + ",".join(ids) + "]"))
GOOD = st.one_of(ID, st.just("null"), BAG)
ANY = st.one_of(NUMBER, TEXT, ODD, BAG)
NAME = st.sampled_from([*tiny().dense_names, *tiny().sparse_names])
ANY_NAME = st.one_of(NAME, NAME, NAME, st.sampled_from(["other", "", "p\\u0072ice"]))
SIZES = st.integers(0, 4)
SPACE = st.sampled_from(["", " ", "\n\t"])


@st.composite
def members(draw: st.DrawFn, names: Any, value: Any, *, unique: bool) -> str:
    keys = draw(st.lists(names, max_size=6, unique=unique))
    space = draw(SPACE)
    return "{" + f"{space},".join(f'{space}"{key}"{space}:{space}{draw(value)}' for key in keys) + "}"


@st.composite
def columns(draw: st.DrawFn, names: Any, value: Any, sizes: Any, *, unique: bool) -> str:
    size = draw(sizes)

    def column() -> st.SearchStrategy[str]:
        most = size if unique else size + draw(st.sampled_from([0, 0, 0, 1]))
        kind = draw(st.sampled_from([value, ID, st.lists(ID, max_size=3).map(lambda v: f"[{','.join(v)}]")]))
        return st.lists(kind, min_size=size, max_size=most).map(lambda values: f"[{', '.join(values)}]")

    keys = draw(st.lists(names, max_size=6, unique=unique))
    return "{" + ",".join(f'"{key}": {draw(column())}' for key in keys) + "}"


@st.composite
def rows(draw: st.DrawFn, names: Any, value: Any, sizes: Any, *, unique: bool) -> str:
    found = [draw(members(names, value, unique=unique)) for _ in range(draw(sizes))]
    return f"[{','.join(found)}]"


@st.composite
def bodies(draw: st.DrawFn, sizes: Any = SIZES) -> bytes:
    """Columns and rows of so many samples, right and wrong."""
    wild = draw(st.booleans())
    names, value = (ANY_NAME, ANY) if wild else (NAME, GOOD)
    inside = {
        "inputs": columns(names, value, sizes, unique=not wild),
        "instances": rows(names, value, sizes, unique=not wild),
    }
    key = draw(st.sampled_from(list(inside)))
    parts = [f'"{key}":{draw(SPACE)}{draw(inside[key])}']
    parts += draw(
        st.sampled_from([[], [], ['"output":"logit"'], ['"output": "odds"'], ['"inputs":{}'], parts])
    )
    text = draw(SPACE) + "{" + ",".join(draw(st.permutations(parts))) + "}" + draw(SPACE)
    return text.encode()


@st.composite
def ranking_bodies(draw: st.DrawFn, sizes: Any = SIZES) -> bytes:
    """Rankings of so many candidates, right and wrong."""
    wild = draw(st.booleans())
    value = ANY if wild else GOOD
    all_names = [*tiny().dense_names, *tiny().sparse_names]
    shared = draw(st.lists(st.sampled_from(all_names), max_size=4, unique=True))
    own = [name for name in all_names if name not in shared or (wild and draw(st.booleans()))] or ["price"]
    context_names = st.sampled_from(shared) if shared else st.nothing()
    kind = draw(st.sampled_from([rows, columns]))
    parts = [
        f'"candidates":{draw(kind(st.sampled_from([*own, "id"]), value, sizes, unique=not wild))}',
        *draw(st.sampled_from([[], ['"context":null'], ['"context": {}']]) if not shared else st.just([])),
    ]
    if shared:
        parts.append(f'"context": {draw(members(context_names, value, unique=not wild))}')
    more = [
        '"top_k": 2',
        '"output": "logit"',
        '"rank_by": "score * price + age_days"',
        '"outputs": ["score"]',
    ]
    parts += draw(st.lists(st.sampled_from(more), max_size=2, unique=True))
    parts += draw(st.sampled_from([[], [], [], ['"top_k": 0'], ['"rank_by": "x"'], parts[:1]]))
    return ("{" + ",".join(draw(st.permutations(parts))) + "}").encode()


@st.composite
def upstream_bodies(draw: st.DrawFn) -> bytes:
    """The shape of TorchServe's own example, mostly right."""
    number = st.one_of(st.integers(-5, 5).map(str), st.sampled_from(["0.5", "null", "-0", "-0.0"]))
    number = st.one_of(number, number, number, ANY)
    value = st.one_of(ID, ID, ID, ID, ID, TEXT, ODD)
    lengths = draw(st.lists(st.integers(0, 3), min_size=3, max_size=3) | st.just([1, 1, 1]))
    wrong = draw(st.sampled_from([0, 0, 0, 0, 1]))
    parts = {
        "float_features": [draw(number) for _ in range(2 + wrong)],
        "id_list_features.lengths": [str(n) for n in lengths],
        "id_list_features.values": [draw(value) for _ in range(sum(lengths))],
    }
    members = [f'"{key}": [{", ".join(values)}]' for key, values in parts.items()]
    members += draw(st.sampled_from([[], [], ['"output":"logit"'], members[:1]]))
    return ("{" + ",".join(draw(st.permutations(members))) + "}").encode()


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """``raw`` with some bytes lost, changed or added."""
    found = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) + 1)
        if rng.random() < 0.4:
            del found[at : at + rng.randint(1, 4)]
        else:
            found[at : at + rng.randint(0, 1)] = rng.choice(
                [
                    b"[",
                    b"]",
                    b"{",
                    b"}",
                    b",",
                    b":",
                    b'"',
                    b"0",
                    b"-",
                    b".",
                    b"e",
                    b"\x00",
                    b"\xff",
                    b"\\",
                    b"null",
                ]
            )
    return bytes(found)
