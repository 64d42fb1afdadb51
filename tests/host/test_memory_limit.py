"""Memory that a process may use, as control groups of both versions tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_factory.host.memory_limit import memory_available, memory_limit, physical_memory

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


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # Pages of files are free, but for those of tmpfs.
        (
            "0::/app\n",
            {"memory.max": 1000, "memory.current": 900, "memory.stat": "anon 200\nfile 700\nshmem 100\n"},
            700,
        ),
        (
            "4:memory:/app\n",
            {
                "memory.limit_in_bytes": 1000,
                "memory.usage_in_bytes": 950,
                "memory.stat": "cache 1\ntotal_cache 500\ntotal_shmem 0\n",
            },
            550,
        ),
        ("0::/app\n", {"memory.max": "max", "memory.current": 900}, 4096),
        ("0::/app\n", {"memory.max": 1000, "memory.current": 1200, "memory.stat": "file 100\nshmem 0\n"}, 0),
    ],
)
def test_what_is_left_is_the_tightest_group_s_or_the_machine_s(
    tmp_path: Path, membership: str, files: dict[str, int | str], expected: int
) -> None:
    (tmp_path / "self").write_text(membership)
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:  4 kB\nHugePages_Total: 0\n")
    folder = tmp_path / "cgroup" / ("memory/app" if "memory:" in membership else "app")
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    found = memory_available(
        membership=tmp_path / "self", cgroups=tmp_path / "cgroup", machine=tmp_path / "meminfo"
    )
    assert found == expected
    assert 0 < memory_available() <= physical_memory()
