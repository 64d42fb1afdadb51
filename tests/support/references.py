"""The reference reader, for tests of the fast ones."""

from __future__ import annotations

from dlrm_factory.errors import RequestError
from dlrm_factory.requests.formats import DecodedRequest, RequestReader, decode_body
from dlrm_factory.requests.request import read_object


def reference(raw: bytes, reader: RequestReader) -> DecodedRequest | None:
    """The request in ``raw``; None if it is refused."""
    try:
        return decode_body(read_object(raw), reader)
    except RequestError:
        return None
