"""Address, ports and secret of a group, as options and the environment say."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_factory.errors import ServingError
from dlrm_factory.rendezvous import MeetingPlace, meeting_variables, parse_ports, read_secret, write_secret


def test_ports() -> None:
    assert parse_ports("29600-29607") == range(29600, 29608)
    assert parse_ports("29600") == range(29600, 29601)
    for text in ("", "a-b", "5-4", "0-3", "65000-65536", "1-65", "-5"):
        with pytest.raises(ServingError, match="are not FIRST-LAST"):
            parse_ports(text)


def test_the_secret_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(ServingError, match="cannot be read"):
        read_secret(path)
    write_secret(path)
    secret = read_secret(path)
    assert len(secret) == 64
    write_secret(path)
    assert read_secret(path) == secret
    path.chmod(0o640)
    with pytest.raises(ServingError, match="may be read by others"):
        read_secret(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(ServingError, match="holds 5 bytes; at least 16"):
        read_secret(path)
    with pytest.raises(ServingError, match="cannot be written"):
        write_secret(tmp_path / "none" / "secret")


def test_never_all_interfaces(tmp_path: Path) -> None:
    write_secret(tmp_path / "secret")
    for address in ("", "0.0.0.0", "::"):
        with pytest.raises(ServingError, match="have no address to find this one by"):
            MeetingPlace.from_environment(meeting_variables(address, "29600", tmp_path / "secret"))
    with pytest.raises(ServingError, match="DLRM_GROUP_SECRET_FILE is not set"):
        MeetingPlace.from_environment({"DLRM_GROUP_ADDRESS": "10.0.0.1"})
    place = MeetingPlace.from_environment(meeting_variables("10.0.0.1", "29600", tmp_path / "secret"))
    assert place.text == "10.0.0.1:29600"
