from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dlrm_factory.tools.server.settings import ENCODING, load_properties, read_properties, with_properties

KEYS = st.text("abcdefghijklmnopqrstuvwxyz_. =:\\", min_size=1).filter(lambda key: key.strip() == key)
VALUES = st.text().filter(lambda value: value == value.strip(" \t\f"))


def test_reads_what_java_reads():
    text = "# comment\n! comment too\n\na=1\n  b : two words  \nc three\nd=x\\\n   y\n"
    text += "e=\\u00e9\\t\\\\d\nf\r\na=2"
    assert read_properties(text) == {
        "a": "2",
        "b": "two words  ",
        "c": "three",
        "d": "xy",
        "e": "é\t\\d",
        "f": "",
    }


def test_changes_keys_in_place_and_keeps_the_comments():
    text = "# the port\nport=1\n# kept\nother=x\nport=2\n"
    assert with_properties(text, {"port": "3", "new": "n"}) == "# the port\nport=3\n# kept\nother=x\nnew=n\n"


def test_a_changed_value_takes_its_continuation_lines_with_it():
    assert with_properties("a=1\\\n  2\nb=3\n", {"a": "4"}) == "a=4\nb=3\n"


@given(st.dictionaries(KEYS, VALUES))
def test_reads_back_whatever_was_written(values):
    written = with_properties("first=1\n# comment\n", values)
    written.encode(ENCODING)
    assert read_properties(written) == {"first": "1", **values}


def test_a_path_with_spaces_accents_and_backslashes_survives_the_file(tmp_path):
    value = r"C:\models of Zoë 模型\x"
    path = tmp_path / "config.properties"
    path.write_text(with_properties("", {"model_store": value}), encoding=ENCODING)
    assert load_properties(path) == {"model_store": value}
