"""docs/archive.md names everything that an archive holds and says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from dlrm_factory.config import tiny
from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.tools.archive.listing import read_archive_listing
from dlrm_factory.tools.archive.model_config import model_config
from dlrm_factory.tools.archive.sealing import archive_model

DOCS = (Path(__file__).resolve().parents[3] / "docs/archive.md").read_text(encoding="utf-8")


def test_every_key_of_model_config_is_explained() -> None:
    group = msgspec.structs.replace(tiny(), sharding=ShardingOptions(world_size=2))
    for key in yaml.safe_load(model_config(group)):
        assert f"| `{key}` |" in DOCS


def test_every_file_of_an_archive_is_explained(checkpoint: Path, tmp_path: Path) -> None:
    archive_model(checkpoint, tmp_path / "dlrm.mar")
    for name in read_archive_listing(tmp_path / "dlrm.mar").files:
        top = name if name.startswith("MAR-INF") else name.split("/")[0] + ("/" if "/" in name else "")
        assert f"| `{top}` |" in DOCS, name
