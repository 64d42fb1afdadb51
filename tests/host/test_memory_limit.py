"""Memory that a process may use, as control groups of both versions tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_factory.host.memory_limit import memory_limit, physical_memory

MB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path):
    """(membership, limits by file) → what `memory_limit` makes of them."""

    def tell(membership: str, limits: dict[str, str]) -> int:
        (tmp_path / "self").write_text(membership)
        for name, limit in limits.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(limit + "\n")
        return memory_limit(membership=tmp_path / "self", cgroups=tmp_path / "cgroup")

    return tell


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/pod/app\n", {"pod/app/memory.max": str(700 * MB), "pod/memory.max": "max"}, 700),
        ("0::/pod/app\n", {"pod/app/memory.max": "max", "pod/memory.max": str(600 * MB)}, 600),
        ("0::/\n", {"memory.max": str(500 * MB)}, 500),
        (
            "9:cpu,cpuacct:/x\n4:memory:/app\n0::/\n",
            {"memory/app/memory.limit_in_bytes": str(400 * MB)},
            400,
        ),
        # In a container the group's own path may not be there, but the root is its own.
        ("4:memory:/docker/123\n", {"memory/memory.limit_in_bytes": str(300 * MB)}, 300),
    ],
)
def test_the_least_of_all_limits_counts(kernel, membership: str, limits: dict[str, str], expected: int):
    assert kernel(membership, limits) == expected * MB


@pytest.mark.parametrize("membership", ["", "0::/\n", "4:memory:/\n", "nonsense\n", "0::/../..\n"])
def test_without_a_limit_it_is_the_machines_memory(kernel, membership: str):
    assert kernel(membership, {"memory/memory.limit_in_bytes": str(1 << 62)}) == physical_memory()


def test_without_control_groups_it_is_the_machines_memory(tmp_path: Path):
    assert memory_limit(membership=tmp_path / "none", cgroups=tmp_path) == physical_memory()
    assert 0 < memory_limit() <= physical_memory()
