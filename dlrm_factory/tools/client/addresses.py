"""Addresses of servers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import httpx

__all__ = ["address_problem", "is_loopback"]


def is_loopback(url: str) -> bool:
    """Whether ``url`` is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_problem(url: str) -> str | None:
    """What is wrong with a server's base URL, for a message; None if nothing is."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        return f"{url}: {error}"
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return f"{url} is not like http://127.0.0.1:8080"
    return None
