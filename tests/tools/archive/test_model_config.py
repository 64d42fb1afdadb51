"""model-config.yaml with and without ranks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from dlrm_factory.config import tiny
from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.errors import ArchiveError
from dlrm_factory.tools.archive import staging
from dlrm_factory.tools.archive.model_config import group_of, model_config, with_ranks

GROUP = {
    "parallelType": "pp",
    "torchrun": {"nproc-per-node": 2, "rdzv-backend": "c10d"},
}


def config_of(**sharding: object) -> dict[str, object]:
    return yaml.safe_load(model_config(msgspec.structs.replace(tiny(), sharding=ShardingOptions(**sharding))))


def test_a_worker_has_the_ranks_of_its_host() -> None:
    alone = config_of()
    assert config_of(world_size=2) == alone | GROUP
    # A leader waits for its hosts for as long as it takes.
    waits = {"hosts": 2, "startupTimeout": 2592000, "maxRetryTimeoutInSec": 30}
    assert config_of(world_size=4, hosts=2, device="cuda") == alone | GROUP | waits | {"deviceType": "gpu"}
    # The leader alone on its host needs no torchrun.
    assert config_of(world_size=2, hosts=2) == alone | waits


def test_other_ranks_keep_all_other_settings() -> None:
    text = "minWorkers: 3\nresponseTimeout: 7\n"
    grouped = with_ranks(text, 2)
    assert yaml.safe_load(grouped) == {"minWorkers": 3, "responseTimeout": 7} | GROUP
    assert yaml.safe_load(with_ranks(grouped, 1)) == {"minWorkers": 3, "responseTimeout": 7}
    spread = with_ranks(text, 4, hosts=2)
    assert yaml.safe_load(spread) == {"minWorkers": 3, "responseTimeout": 7} | GROUP | {
        "hosts": 2,
        "startupTimeout": 2592000,
        "maxRetryTimeoutInSec": 30,
    }
    alone = yaml.safe_load(with_ranks(spread, 1, startup_timeout_s=77))
    assert alone == {"minWorkers": 3, "responseTimeout": 7, "startupTimeout": 77}


@pytest.mark.parametrize(
    ("text", "group"),
    [
        (None, (1, 1)),
        ("minWorkers: 1\n", (1, 1)),
        (with_ranks("minWorkers: 1\n", 3), (3, 1)),
        (with_ranks("minWorkers: 1\n", 6, hosts=3), (6, 3)),
        (with_ranks("minWorkers: 1\n", 3, hosts=3), (3, 3)),
        # TorchServe starts one process.
        ("torchrun: {nproc-per-node: 4}\n", (1, 1)),
    ],
)
def test_group_of_an_archive(tmp_path: Path, text: str | None, group: tuple[int, int]) -> None:
    write_archive(tmp_path, text)
    assert group_of(tmp_path) == group


@pytest.mark.parametrize(("text", "reason"), [("a: [", "is not YAML"), ("- a", "is not a mapping")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    write_archive(tmp_path, text)
    with pytest.raises(ArchiveError, match=rf"{tmp_path}: model-config.yaml: {reason}"):
        group_of(tmp_path)


def write_archive(folder: Path, text: str | None) -> None:
    (folder / "handler.py").write_text("")
    (folder / "MAR-INF").mkdir()
    manifest = '{"model": {"modelName": "dlrm", "handler": "handler.py"}}'
    (folder / "MAR-INF" / "MANIFEST.json").write_text(manifest)
    if text is not None:
        (folder / "model-config.yaml").write_text(text)


def test_golden_requests_are_replayed_by_as_many_ranks_as_a_worker_has(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, dict[str, object]]] = []
    monkeypatch.setattr(staging, "replay_in_group", lambda _, ranks, **how: asked.append((ranks, how)))
    staging.stage(checkpoint, tmp_path / "alone")
    assert asked == []
    weights = staging.open_weights(checkpoint)
    sharding = ShardingOptions(world_size=6, hosts=2, device="cuda")
    weights.declaration = msgspec.structs.replace(weights.declaration, sharding=sharding)
    (tmp_path / "group").mkdir()
    staging.fill_stage(weights, tmp_path / "group")
    assert asked == [(3, {"device": "cpu", "compiled": False})]
