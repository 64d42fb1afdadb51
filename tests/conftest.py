"""For all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session", autouse=True)
def host_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run alone: no test finds what an earlier run compiled or checked, or leaves anything."""
    with pytest.MonkeyPatch.context() as patch:
        if "DLRM_CACHE_DIR" not in os.environ:
            patch.setenv("DLRM_CACHE_DIR", str(tmp_path_factory.mktemp("host") / "cache"))
        yield


# A machine that does other work besides is no fault of a test: no example has a time limit.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
