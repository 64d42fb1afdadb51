"""Settings by which the groups of a server find their other hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.rendezvous import meeting_variables, parse_ports, read_secret, write_secret
from dlrm_factory.tools.server.ranks import hosts_of
from dlrm_factory.tools.server.store import ServedModel

__all__ = ["meeting_environment"]


def meeting_environment(
    models: Sequence[ServedModel], *, address: str | None, ports: str, secret_file: Path
) -> dict[str, str]:
    """Environment of workers whose groups have other hosts; empty if no model's do. The secret is made if need be.

    ServingError for an address that is missing or not this machine's, for wrong ports, or a secret others may read.
    """
    several = [(model.name, hosts) for model in models if (hosts := hosts_of(model)) > 1]
    if not several:
        return {}
    name, hosts = several[0]
    own = {each.address for addresses in psutil.net_if_addrs().values() for each in addresses}
    if not address or not (address in own or address.startswith("127.")):
        found = f"{address} is not an address of this machine" if address else "they have to find this one"
        ours = ", ".join(sorted(each for each in own if "." in each and not each.startswith("127.")))
        raise ServingError(
            f'model "{name}" is served by {hosts} hosts, and {found}: give --group-address, its address in their '
            f"network (it has {ours or 'none but loopback'}), or --ranks to serve it here alone"
        )
    parse_ports(ports)
    write_secret(secret_file)
    read_secret(secret_file)
    return meeting_variables(address, ports, secret_file.absolute())
