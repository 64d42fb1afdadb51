"""Handler that answers every request with a 503 that may be tried again, in place of one that did not load.

Copied alone into the folder of a version that did not come up and is being removed, so nothing of the project is
imported.
"""

from __future__ import annotations

from typing import Any

_BODY = (
    b'{"code": 503, "type": "GoingAway", "message": "the server, or this version of the model, is going away; '
    b'send the request again", "path": "$"}'
)


class TurnsAway:
    """Needs no model."""

    def initialize(self, context: Any) -> None:
        """Do nothing."""

    def handle(self, data: list[Any], context: Any) -> list[bytes]:
        """One body a request."""
        for place in range(len(data)):
            context.set_response_status(503, "Service Unavailable", place)
            context.set_response_content_type(place, "application/json")
        return [_BODY] * len(data)
