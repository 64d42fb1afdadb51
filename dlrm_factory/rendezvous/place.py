"""Address, ports and secret by which the leader's host is found, and the environment that hands them to workers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlrm_factory.errors import ServingError

__all__ = [
    "ADDRESS_VARIABLE",
    "DEFAULT_PORTS",
    "PORTS_VARIABLE",
    "SECRET_VARIABLE",
    "MeetingPlace",
    "meeting_variables",
    "parse_ports",
    "read_secret",
    "write_secret",
]  # fmt: skip

ADDRESS_VARIABLE = "DLRM_GROUP_ADDRESS"
PORTS_VARIABLE = "DLRM_GROUP_PORTS"
SECRET_VARIABLE = "DLRM_GROUP_SECRET_FILE"
DEFAULT_PORTS = "29600-29607"
_MAX_PORTS = 64
_MIN_SECRET_BYTES = 16
_MAX_SECRET_BYTES = 4096
_ANYWHERE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, kw_only=True)
class MeetingPlace:
    """Where groups of one leader's host are joined: each listens on the first port that is free.

    Fields:
        address: of the leader's host, in the network of the other hosts.
        ports: as many as groups may run there at once.
        secret: known to all hosts.
    """

    address: str
    ports: range
    secret: bytes

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> MeetingPlace:
        """The place that a worker is told. ServingError if it is not told one, or a wrong one."""
        address = environment.get(ADDRESS_VARIABLE, "")
        if address in _ANYWHERE:
            raise ServingError(
                "this model is served on several hosts, and other hosts have no address to find this one by: give "
                f"`dlrm serve` --group-address, or set {ADDRESS_VARIABLE} and {SECRET_VARIABLE}"
            )
        secret_file = environment.get(SECRET_VARIABLE)
        if not secret_file:
            raise ServingError(
                f"{SECRET_VARIABLE} is not set; it names the file of the secret that all hosts have"
            )
        ports = parse_ports(environment.get(PORTS_VARIABLE, DEFAULT_PORTS))
        return cls(address=address, ports=ports, secret=read_secret(Path(secret_file)))

    @property
    def text(self) -> str:
        """``10.0.0.1:29600-29607``."""
        first, last = self.ports[0], self.ports[-1]
        return f"{self.address}:{first}" + (f"-{last}" if last > first else "")


def meeting_variables(address: str, ports: str, secret_file: Path) -> dict[str, str]:
    """The environment that `MeetingPlace.from_environment` reads."""
    return {ADDRESS_VARIABLE: address, PORTS_VARIABLE: ports, SECRET_VARIABLE: str(secret_file)}


def parse_ports(text: str) -> range:
    """``"29600-29607"`` or ``"29600"``. ServingError for anything else."""
    first, _, last = text.partition("-")
    try:
        ports = range(int(first), int(last or first) + 1)
    except ValueError:
        ports = range(0)
    if not 1 <= len(ports) <= _MAX_PORTS or not 0 < ports[0] <= ports[-1] < 65536:
        raise ServingError(
            f'ports "{text}" are not FIRST-LAST, as in {DEFAULT_PORTS}, within 1 to 65535 and at most {_MAX_PORTS}'
        )
    return ports


def read_secret(path: Path) -> bytes:
    """The secret in a file that its owner alone may read. ServingError if there is none, or others may."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            secret = file.read(_MAX_SECRET_BYTES).strip()
    except OSError as error:
        raise ServingError(
            f"secret file {path} cannot be read ({error.strerror}); copy the leader's, which `dlrm serve` names"
        ) from None
    if mode & 0o077:
        raise ServingError(f"secret file {path} may be read by others; `chmod 600 {path}`")
    if len(secret) < _MIN_SECRET_BYTES:
        raise ServingError(
            f"secret file {path} holds {len(secret)} bytes; at least {_MIN_SECRET_BYTES} are needed"
        )
    return secret


def write_secret(path: Path) -> None:
    """Make a secret file, for its owner alone, if there is none. ServingError if that cannot be."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise ServingError(f"secret file {path} cannot be written: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
