"""What is known of the model behind an endpoint: its declaration, and how to be let in."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import httpx

from dlrm_factory.config import DLRMDeclaration
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.client.tokens import KeyFileAuth, is_refused
from dlrm_factory.tools.server import Endpoint, running_server
from dlrm_factory.tools.server.management import http_client

__all__ = ["authorization", "served_declaration"]

_TIMEOUT_S = 30.0


def authorization(endpoint: Endpoint) -> str | None:
    """The Authorization header that the server takes, renewed if it has expired; None where none is needed.

    ServingError if the server does not answer, or refuses the token.
    """
    with http_client(endpoint.url.rstrip("/"), endpoint.auth, _TIMEOUT_S) as client:
        try:
            response = client.get("/ping")
        except httpx.TransportError as error:
            raise ServingError(
                f"no server answers at {endpoint.url} ({error or type(error).__name__})"
            ) from error
    if is_refused(response):
        raise ServingError(f"the server at {endpoint.url} refuses the token; give another with --token")
    return response.request.headers.get("Authorization")


def served_declaration(endpoint: Endpoint, model: str) -> DLRMDeclaration:
    """Of a model that the run directory's server serves. ServingError where it cannot be found out."""
    if endpoint.local is None:
        raise ServingError(
            f"what {endpoint.url} serves is not known here; name the model's declaration or archive with "
            "--declaration, or give whole requests with --requests"
        )
    # Brings torch, which nothing else here needs.
    from dlrm_factory.tools.archive import read_archive_declaration

    state = running_server(endpoint.local.root)
    assert state is not None
    auth = KeyFileAuth(endpoint.local.key_file, "management", state.management) if state.token_auth else None
    with http_client(state.management, auth, _TIMEOUT_S) as client:
        response = client.get(f"/models/{quote(model, safe='')}")
    if not response.is_success:
        raise ServingError(
            f'the server has no model "{model}"; it was started with {", ".join(state.models)}'
        )
    return read_archive_declaration(Path(state.model_store) / response.json()[0]["modelUrl"])
