"""One TorchServe for all files that only ask it; what a file scales, kills or configures it starts itself."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from support.server import inference_client, serving_tiny

from dlrm_factory.tools.server import RunningServer


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Preset `tiny` with random weights as "tiny", version 2.1, scored eagerly."""
    with serving_tiny(tmp_path_factory.mktemp("tiny")) as running:
        yield running


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Client of the file's own ``server`` if it has one, else of `tiny_server`."""
    try:
        server = request.getfixturevalue("server")
    except pytest.FixtureLookupError:
        server = request.getfixturevalue("tiny_server")
    with inference_client(server) as made:
        yield made
