"""Settings of one server: a base file's properties, with addresses, tokens and limits written in."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server.front_end import front_end_changes
from dlrm_factory.tools.server.store import ServedModel

__all__ = [
    "ENCODING",
    "LOG_CONFIG",
    "ServerSettings",
    "base_config",
    "check_free",
    "free_ports",
    "holder_of",
    "load_properties",
    "read_properties",
    "server_settings",
    "with_properties",
]

# What java.util.Properties.load reads; everything else is written \uXXXX.
ENCODING = "latin-1"

# Java's idea of line ends and blanks is narrower than Python's.
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = " \t\f"
_KERNELS_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_QUIET, _QUIET_TRIED = 16384, 64
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SEPARATOR = re.compile(r"((?:\\.|[^\\=:\s])*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
# The repository's own file, here by a link: one source, in a checkout and where the package is installed.
_SHIPPED = Path(__file__).with_name("config.properties")
_ADDRESSES = {
    "inference_address": ("inference", 8080, "--port"),
    "management_address": ("management", 8081, "--management-port"),
    "metrics_address": ("metrics", 8082, "--metrics-port"),
}
# TorchServe's default gRPC ports; nobody asked for them, so they must not keep a second server from starting.
_GRPC_DEFAULTS = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}
# Relative paths mean "beside the file that says so", not "in the run directory", where TorchServe runs.
_PATHS = ("keystore", "private_key_file", "certificate_file", "metrics_config", "cpp_log_config")
_HTTP = re.compile(r"http://(?P<host>[^:/]+)(?::(?P<port>\d+))?/?", re.IGNORECASE)


def load_properties(path: Path) -> dict[str, str]:
    """The keys and values of the file at ``path``. Raises ``OSError`` when it cannot be read."""
    return read_properties(path.read_text(encoding=ENCODING))


def read_properties(text: str) -> dict[str, str]:
    """The keys and values of ``text``; of a repeated key the last counts, as in Java."""
    return {key: value for _, key, value in _entries(text) if key}


def with_properties(text: str, changes: Mapping[str, str]) -> str:
    """``text`` with each key of ``changes`` set: in place where it has the key, else at the end."""
    left, lines = dict(changes), []
    for raw, key, _ in _entries(text):
        if key in changes:
            # A key given twice is written once: the first line takes the new value.
            if key in left:
                lines.append(_line(key, left.pop(key)))
        else:
            lines.append(raw)
    lines += [_line(key, value) for key, value in left.items()]
    return "\n".join(lines) + "\n"


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Each logical line as (raw lines, key, value); key is empty for comments and blank lines."""
    lines = iter(_LINE_END.split(text.removesuffix("\n")))
    for raw in lines:
        logical = raw.lstrip(_BLANK)
        if not logical or logical[0] in "#!":
            yield raw, "", ""
            continue
        while _continues(logical):
            following = next(lines, "")
            raw += "\n" + following
            logical = logical[:-1] + following.lstrip(_BLANK)
        match = _SEPARATOR.match(logical)
        assert match is not None, "the pattern matches every line"
        yield raw, _unescape(match[1]), _unescape(match[2])


def _continues(line: str) -> bool:
    """An odd number of backslashes at the end joins the next line."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        found = match[1]
        return chr(int(found[1:], 16)) if len(found) == 5 else _CONTROL.get(found, found)

    # Beyond 16 bits Java writes two escapes; together they are one character.
    return _ESCAPE.sub(plain, text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _line(key: str, value: str) -> str:
    return f"{_escape(key, also='=: ')}={_escape(value)}"


def _escape(text: str, also: str = "") -> str:
    out = []
    for index, char in enumerate(text):
        if char == "\\" or char in also or (char == " " and index == 0):
            out.append("\\" + char)
        elif " " <= char <= "~":
            out.append(char)
        else:
            units = char.encode("utf-16-be")
            out += [f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)]
    return "".join(out)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """``count`` different ports that nobody listens on just now.

    Where there are such, they are none that the kernel gives to whoever asks for any: that would often be somebody
    before the server listens.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in [*_quiet_ports(), *[0] * count]:
            trial = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                trial.bind((host, port))
                found.append(int(trial.getsockname()[1]))
            if len(found) == count:
                break
        return found


def _quiet_ports() -> list[int]:
    """Some ports below those that the kernel gives, in no order; none if there are few."""
    try:
        first = int(_KERNELS_PORTS.read_text().split()[0])
    except (OSError, ValueError):
        return []
    below = range(_FIRST_QUIET, first)
    return random.SystemRandom().sample(below, _QUIET_TRIED) if len(below) > 10 * _QUIET_TRIED else []


def check_free(host: str, port: int, purpose: str, option: str) -> None:
    """Raises ServingError when ``port`` cannot be listened on; ``option`` is what changes it."""
    with socket.socket() as trial:
        # As the server does: a port that only waits out its last connections is free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError as error:
            raise ServingError(_taken(host, port, purpose, option, error)) from error


def _taken(host: str, port: int, purpose: str, option: str, error: OSError) -> str:
    if error.errno == 13:
        return f"{purpose} port {port} needs root; give a port over 1023 with {option}"
    if error.errno == 99:
        return f"{purpose} address {host} is not an address of this machine; mend config.properties"
    return (
        f"{purpose} port {port} is taken{holder_of(port)}; stop that, or give another port with {option} "
        "(0 picks a free one)"
    )


def holder_of(port: int) -> str:
    """``' by java (pid 4711)'`` for whoever listens on ``port``, ``''`` when the system does not tell."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = [c.pid for c in listening if c.laddr and c.laddr.port == port and c.pid]
        return f" by {psutil.Process(pids[0]).name()} (pid {pids[0]})" if pids else ""
    except (psutil.Error, OSError):
        return ""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Address of one of TorchServe's servers: ``host`` as configured, ``port`` chosen."""

    host: str
    port: int

    @property
    def listen(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """URL by which this machine reaches it."""
        return f"http://{self.target}"

    @property
    def target(self) -> str:
        """HOST:PORT by which this machine reaches it: a server that listens everywhere also listens on loopback."""
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The text of the effective file, and what others need to know of it."""

    base: Path
    text: str
    inference: Address
    management: Address
    metrics: Address
    grpc_inference: Address
    grpc_management: Address
    token_auth: bool
    own_log_config: bool


def base_config(given: Path | None) -> Path:
    """The file to start from: ``given``, else ``./config.properties``, else the shipped one."""
    if given is not None and not given.is_file():
        raise ServingError(f"settings file {given} does not exist; mend --ts-config")
    here = Path("config.properties")
    return (given or (here if here.is_file() else _SHIPPED)).absolute()


def server_settings(
    base: Path,
    *,
    model_store: Path,
    ports: Mapping[str, int | None],
    token_auth: bool = True,
    workers: int | None = None,
    models: Sequence[ServedModel] = (),
) -> ServerSettings:
    """The settings in force; ``ports`` maps property names to ports: None keeps the base's, 0 is a free one.

    The front end's limits follow ``models``.

    Raises ServingError for a base that cannot be read, and for ports that are taken or given twice.
    """
    try:
        found = load_properties(base)
        text = base.read_text(encoding=ENCODING)
    except OSError as error:
        raise ServingError(f"settings file {base} cannot be read: {error.strerror}") from error
    free = iter(free_ports(len(_ADDRESSES) + len(_GRPC_DEFAULTS)))
    addresses = _addresses(found, ports, free)
    grpc = _grpc_addresses(found, ports, free)
    token_auth = token_auth and found.get("disable_token_authorization", "false").lower() != "true"
    changes = {key: address.listen for key, address in addresses.items()}
    changes |= {key: str(address.port) for key, address in grpc.items()}
    changes |= {key: str(_beside(base, found[key])) for key in _PATHS if found.get(key)}
    changes |= _allowed_urls(found, model_store)
    changes |= _front_end(found, models)
    changes["model_store"] = str(model_store)
    changes["disable_token_authorization"] = "false" if token_auth else "true"
    if workers is not None:
        changes["default_workers_per_model"] = str(max(workers, 1))
    return ServerSettings(
        base=base,
        text=with_properties(text, changes),
        inference=addresses["inference_address"],
        management=addresses["management_address"],
        metrics=addresses["metrics_address"],
        grpc_inference=grpc["grpc_inference_port"],
        grpc_management=grpc["grpc_management_port"],
        token_auth=token_auth,
        own_log_config=_own_log_config(found),
    )


def _addresses(
    found: Mapping[str, str], ports: Mapping[str, int | None], free: Iterator[int]
) -> dict[str, Address]:
    addresses: dict[str, Address] = {}
    for key, (purpose, default, option) in _ADDRESSES.items():
        host, port = _parse(key, found.get(key, f"http://127.0.0.1:{default}"), default)
        asked = ports.get(key)
        port = port if asked is None else asked
        for other, address in addresses.items():
            # TorchServe would answer both on one port, and then asks no management token.
            if port and address.port == port:
                raise ServingError(
                    f"{purpose} port {port} is the {_ADDRESSES[other][0]} port too; give another with "
                    f"{option}"
                )
        _check_range(port, option)
        check_free(host, port, purpose, option)
        addresses[key] = Address(host=host, port=port or next(free))
    return addresses


def _parse(key: str, value: str, default: int) -> tuple[str, int]:
    match = _HTTP.fullmatch(value.strip())
    if match is None:
        raise ServingError(
            f"{key}={value}: `dlrm serve` speaks http://HOST:PORT to its server; put TLS in a proxy, or "
            "start `torchserve` yourself (docs/serving.md)"
        )
    return match["host"], int(match["port"] or default)


def _check_range(port: int, option: str) -> None:
    if not 0 <= port < 65535:
        raise ServingError(f"{option} {port} is out of range [0, 65534]; 0 picks a free port")


def _grpc_addresses(
    found: Mapping[str, str], ports: Mapping[str, int | None], free: Iterator[int]
) -> dict[str, Address]:
    """gRPC cannot be switched off, so unless asked for it listens on a free port."""
    addresses = {}
    for key, default in _GRPC_DEFAULTS.items():
        option = "--" + key.removesuffix("_port").replace("_inference", "").replace("_", "-") + "-port"
        configured = found.get(key, default)
        asked = ports.get(key)
        port = asked if asked is not None else 0 if configured == default else int(configured)
        host = found.get(key.replace("_port", "_address"), "127.0.0.1")
        _check_range(port, option)
        if port:
            check_free(host, port, key[:-5].replace("_", " "), option)
        addresses[key] = Address(host=host, port=port or next(free))
    return addresses


def _beside(base: Path, value: str) -> Path:
    return base.parent / Path(value).expanduser()


def _allowed_urls(found: Mapping[str, str], model_store: Path) -> dict[str, str]:
    """The shipped rule, narrowed to the very folder; a rule of the user's own stays."""
    shipped = load_properties(_SHIPPED)["allowed_urls"]
    if found.get("allowed_urls", shipped) != shipped:
        return {}
    # A comma would part the list; "." stands for it, and for any other single character.
    folder = re.escape(str(model_store)).replace(",", ".")
    return {"allowed_urls": rf"file://{folder}/[^/]+\.(mar|tar\.gz)"}


def _front_end(found: Mapping[str, str], models: Sequence[ServedModel]) -> dict[str, str]:
    try:
        return front_end_changes(found, load_properties(_SHIPPED), models)
    except ValueError as error:
        raise ServingError(f"max_request_size and job_queue_size must be whole numbers: {error}") from None


def _own_log_config(found: Mapping[str, str]) -> bool:
    """True if the base asks for our log4j2.xml or for none; a file of the user's own is left to work."""
    flags = [
        word for word in found.get("vmargs", "").split() if word.startswith("-Dlog4j.configurationFile=")
    ]
    return all(
        Path(flag.partition("=")[2]).name == LOG_CONFIG.name and "dlrm_factory" in flag for flag in flags
    )
