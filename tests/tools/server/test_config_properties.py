"""The shipped config.properties: commented, documented, safe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dlrm_factory.tools.server.settings import load_properties

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config.properties"
PROPERTIES = load_properties(CONFIG)


def test_every_key_has_its_comment():
    lines = CONFIG.read_text(encoding="latin-1").splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith("#"):
            assert before.startswith("# "), f"no comment above {line}"


def test_every_key_is_documented():
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")))
    assert set(PROPERTIES) <= documented


def test_all_addresses_are_loopback():
    addresses = {key: value for key, value in PROPERTIES.items() if key.endswith("_address")}
    assert len(addresses) == 5
    assert {re.sub(r"http://|:\d+", "", value) for value in addresses.values()} == {"127.0.0.1"}


def test_tokens_are_on_and_pip_is_off():
    assert PROPERTIES["disable_token_authorization"] == "false"
    assert PROPERTIES["install_py_dep_per_model"] == "false"
    assert PROPERTIES["enable_model_api"] == "true"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("file:///srv/dlrm/model_store/dlrm.mar", True),
        ("file:///model_store/dlrm.tar.gz", True),
        ("file:///etc/passwd", False),
        ("file:///srv/model_store/deeper/dlrm.mar", False),
        ("file:///srv/not_model_store/dlrm.mar", False),
        ("http://example.com/model_store/dlrm.mar", False),
        ("https://example.com/dlrm.mar", False),
        ("s3://bucket/model_store/dlrm.mar", False),
    ],
)
def test_only_archives_of_a_local_model_store_may_be_loaded_by_url(url, allowed):
    patterns = PROPERTIES["allowed_urls"].split(",")
    assert any(re.fullmatch(pattern, url, re.IGNORECASE) for pattern in patterns) == allowed


def test_the_package_carries_the_same_file():
    assert (
        ROOT / "dlrm_factory" / "tools" / "server" / "config.properties"
    ).read_bytes() == CONFIG.read_bytes()


def test_the_log_configuration_it_names_exists():
    flag = next(word for word in PROPERTIES["vmargs"].split() if "log4j.configurationFile" in word)
    assert (ROOT / flag.partition("=")[2]).is_file()
