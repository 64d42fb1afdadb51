"""Requests of the demo, and its view of the answers. Called by scripts/demo."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from dlrm_factory.config import DLRMDeclaration, demo
from dlrm_factory.errors import DLRMError
from dlrm_factory.tools.archive.reading import read_archive_declaration

CANDIDATES = 100


def ranking() -> dict[str, object]:
    """One user, 100 items: columns by name, the user's features repeated."""
    pick = random.Random(7)
    items = range(CANDIDATES)
    return {
        "inputs": {
            "user_visits": [12] * CANDIDATES,
            "hour": [20] * CANDIDATES,
            "item_price": [round(pick.uniform(2, 90), 2) for _ in items],
            "item_age_days": [pick.randrange(400) for _ in items],
            "user_id": ["user_17"] * CANDIDATES,
            "user_segments": [[3, 11]] * CANDIDATES,
            "country": ["country_4"] * CANDIDATES,
            "device": ["device_0"] * CANDIDATES,
            "item_id": [f"item_{item}" for item in items],
            "item_category": [f"item_category_{pick.randrange(30)}" for _ in items],
            "item_tags": [[pick.randrange(200) for _ in range(pick.randrange(4))] for _ in items],
        }
    }


def upstream() -> dict[str, object]:
    """One sample by position: 4 dense numbers, and 7 bags of ids of which two hold several."""
    return {
        "float_features": [12, 20, 19.95, 3],
        "id_list_features.lengths": [1, 2, 1, 1, 1, 1, 3],
        "id_list_features.values": [17, 3, 5, 31, 2, 45821459, 8, 4, 9, 11],
    }


def best(request: str, answer: str) -> None:
    """Print the five best candidates of an answered ranking request."""
    items = json.loads(Path(request).read_text())["inputs"]["item_id"]
    scores = json.loads(Path(answer).read_text())["predictions"]
    assert len(scores) == len(items) == CANDIDATES
    print(f"{len(scores)} click-through rates; the best:")
    for score, item in sorted(zip(scores, items, strict=True), reverse=True)[:5]:
        print(f"  {item:8} {score:.4f}")


def is_demo(archive: str) -> bool:
    """Return True if ``archive`` has a model with the demo's features."""
    try:
        found = read_archive_declaration(Path(archive))
    except DLRMError:
        return False
    return _names(found) == _names(demo())


def _names(declaration: DLRMDeclaration) -> list[list[tuple[str, ...]]]:
    return [
        [(feature.name,) for feature in declaration.dense_features],
        [(feature.name, feature.table) for feature in declaration.sparse_features],
    ]


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "best":
        best(*arguments)
    elif command == "is_demo":
        sys.exit(not is_demo(*arguments))
    else:
        print(json.dumps({"ranking": ranking, "upstream": upstream}[command]()))
