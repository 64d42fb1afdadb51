from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.config import Output, ServingOptions, tiny
from dlrm_factory.config.checks import problems_of
from dlrm_factory.config.expression import FUNCTIONS, parse_expression, ranking_expression

KNOWN = ["click", "purchase", "price", "age-days"]
VALUES = {
    "click": np.array([0.25, 0.5]),
    "purchase": np.array([0.125, 0.0]),
    "price": 3.0,
    "age-days": np.array([1.0, 2.0]),
}


def value(text: str) -> list[float]:
    return parse_expression(text, KNOWN)(VALUES, 2).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("click", [0.25, 0.5]),
        ("click * purchase * price", [0.09375, 0.0]),
        ("price", [3.0, 3.0]),
        ("click - purchase - 1", [-0.875, -0.5]),
        ("click + purchase * 2", [0.5, 0.5]),
        ("(click + purchase) * 2", [0.75, 1.0]),
        ("12 / price / 2 + 0 * click", [2.0, 2.0]),
        ("2 ** price ** 2 + 0 * click", [512.0, 512.0]),
        ("-2 ** 2 * click", [-1.0, -2.0]),
        ("2 ** -1 * click", [0.125, 0.25]),
        ("-click ** 2", [-0.0625, -0.25]),
        ("--click", [0.25, 0.5]),
        ("2 * -click", [-0.5, -1.0]),
        ("`age-days` - click", [0.75, 1.5]),
        ("min(click, purchase, .2)", [0.125, 0.0]),
        ("max(purchase, 1e-2)", [0.125, 0.01]),
        ("log(exp(click))", [0.25, 0.5]),
        ("exp(log1p(click))", [1.25, 1.5]),
        (" \tclick*\n2. ", [0.5, 1.0]),
    ],
)
def test_values(text: str, expected: list[float]) -> None:
    assert value(text) == pytest.approx(expected, abs=1e-15)


def test_what_has_no_value_is_not_finite() -> None:
    for text in ("1 / purchase", "log(purchase)", "(0 - click) ** 0.5", "exp(price * 1e9)"):
        assert not np.isfinite(parse_expression(text, KNOWN)(VALUES, 2)[1])


def test_names_in_order() -> None:
    found = parse_expression("price * click + price ** click", KNOWN)
    assert (found.names, found.is_name) == (("price", "click"), False)
    assert parse_expression("(click)", KNOWN).is_name
    assert not parse_expression("-click", KNOWN).is_name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'at its end: a number, a name or "(" belongs here'),
        ("click *", 'at its end: a number, a name or "(" belongs here'),
        ("click * / price", 'at character 9, near "/ price": a number, a name or "("'),
        ("click price", 'at character 7, near "price": one of + - * / ** belongs here, or the end'),
        ("(click * 2", 'at character 1, near "(click * 2": this "(" is not closed'),
        ("click)", 'at character 6, near ")"'),
        (
            "clik * price",
            'at character 1, near "clik * price": there is no output and no dense feature "clik"; did',
        ),
        ("xyz", 'dense feature "xyz"; known are click, purchase, price, age-days'),
        ("click - `age-day`", 'did you mean "age-days"?'),
        ("click * tags", '"tags" is a sparse feature; name probabilities and dense features'),
        (
            "logg(click)",
            'there is no such function; did you mean "log" or "log1p"?; known are exp, log, log1p, max, min',
        ),
        ("log(click, 2)", "log takes 1 value, not 2"),
        ("min(click)", "min takes 2 to 10 values, not 1"),
        ("log()", 'a number, a name or "(" belongs here'),
        ("log(click", 'near "(click": this "(" is not closed'),
        ("1e999 * click", "this number is out of range"),
        ("2 + 3", "it names no output and no dense feature"),
        ("click.real", 'at character 6, near ".real": this is no part'),
        ("__import__('os')", "this is no part of an expression"),
        ("click if price else 2", "one of + - * / ** belongs here"),
        ("lambda: click", "this is no part of an expression"),
        ("click[0]", "this is no part of an expression"),
        ("click // 2", 'at character 8, near "/ 2"'),
        ("préis", "this is no part of an expression"),
        ("(" * 30 + "click" + ")" * 30, "it is nested deeper than 20"),
        ("-" * 100 + "click", "it is nested deeper than 20"),
        ("click ** " * 30 + "2", "it is nested deeper than 20"),
        ("+".join(["click"] * 52), "it has more than 50 operators"),
        ("+".join(["click"] * 2000), "characters, over 500"),
    ],
)
def test_mistakes_have_a_place(text: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_expression(text, KNOWN, {"tags": "a sparse feature"})
    assert said in str(raised.value)


@given(
    st.lists(
        st.sampled_from([*"0123456789.+-*/(),` eElogminxck\u00e9\n", "click", "log(", "**"]), max_size=60
    ).map("".join)
)
def test_any_text_is_an_expression_or_a_mistake(text: str) -> None:
    try:
        found = parse_expression(text, KNOWN)
    except ValueError:
        return
    assert found(VALUES, 2).shape == (2,)


NUMBERS = st.sampled_from(["click", "price", "2", "0.5"])


@given(
    st.recursive(
        NUMBERS,
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
            st.builds("{} {} {}".format, inner, st.sampled_from(["+", "-", "*", "**"]), inner),
            st.builds("-{}".format, inner),
            st.builds("min({}, {})".format, inner, inner),
        ),
        max_leaves=8,
    )
)
def test_precedence_is_pythons(text: str) -> None:
    """Against Python's own reading, of texts that are made here."""
    text += " + 0 * click"
    names = {"click": np.float64(0.25), "price": np.float64(3.0), "min": np.minimum}
    with np.errstate(all="ignore"):
        try:
            expected = eval(text, {"__builtins__": {}}, names)
        except (ZeroDivisionError, OverflowError):  # of plain numbers, where NumPy gives inf
            return
    found = parse_expression(text, KNOWN)({"click": np.array([0.25]), "price": 3.0}, 1)[0]
    if isinstance(expected, complex):
        return
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_names_of_a_declaration() -> None:
    declaration = msgspec.structs.replace(
        tiny(), outputs=[Output(name="click"), Output(name="tower", kind="vector", size=4)]
    )
    assert ranking_expression("click * price + age_days", declaration).names == ("click", "price", "age_days")
    for name, what in {"item_id": "a sparse feature", "tower": "a vector"}.items():
        with pytest.raises(ValueError, match=f'"{name}" is {what}'):
            ranking_expression(f"click * {name}", declaration)
    assert ranking_expression("score", tiny()).is_name


@pytest.mark.parametrize(
    ("serving", "problem"),
    [
        ({"rank_by": "score * price"}, None),
        ({"rank_by": "score * prize"}, '$.serving.rank_by: at character 9, near "prize": there is no output'),
        ({"rank_by": ""}, "$.serving.rank_by: at its end"),
        ({"outputs": ["score"]}, None),
        ({"outputs": ["scor"]}, '$.serving.outputs[0]: there is no output "scor"; did you mean "score"?'),
        ({"outputs": ["x"]}, '$.serving.outputs[0]: there is no output "x"; name some of score'),
        ({"outputs": ["score", "score"]}, '$.serving.outputs[1]: output "score" is there twice'),
        ({"outputs": []}, "$.serving.outputs: is empty"),
    ],
)
def test_a_declaration_is_checked(serving: dict[str, object], problem: str | None) -> None:
    found = problems_of(msgspec.structs.replace(tiny(), serving=ServingOptions(**serving)))
    assert found == [] if problem is None else len(found) == 1 and found[0].startswith(problem), found


def test_functions_are_few() -> None:
    assert sorted(FUNCTIONS) == ["exp", "log", "log1p", "max", "min"]
