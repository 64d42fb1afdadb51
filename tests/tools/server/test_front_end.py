"""The front end's limits follow the models and the machine; a user's own numbers stay."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import msgspec
import pytest

from dlrm_factory.config import ServingOptions, dump_declaration, tiny
from dlrm_factory.errors import ServingError
from dlrm_factory.tools.server import settings as settings_module
from dlrm_factory.tools.server.front_end import front_end_changes
from dlrm_factory.tools.server.settings import load_properties, server_settings
from dlrm_factory.tools.server.store import ServedModel
from dlrm_factory.weights.seal import DECLARATION_FILE

SHIPPED = load_properties(Path(settings_module.__file__).with_name("config.properties"))
SLACK = 65_536
GB = 10**9


def model(folder: Path, name: str, max_body_bytes: int | None, *, packed: bool = False) -> ServedModel:
    """A model whose declaration says ``max_body_bytes``; None has no declaration."""
    path = folder / name
    serving = ServingOptions(max_body_bytes=max_body_bytes or 1, batch_size=8)
    text = dump_declaration(msgspec.structs.replace(tiny(), serving=serving))
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(DECLARATION_FILE, text)
    else:
        path.mkdir()
        if max_body_bytes is not None:
            (path / DECLARATION_FILE).write_text(text)
    return ServedModel(name=name, location=name, path=path)


def memory_of(vmargs: str) -> tuple[int, int]:
    """(heap, direct memory) in MiB."""
    heap = re.findall(r"-Xmx(\d+)m", vmargs)
    direct = re.findall(r"-XX:MaxDirectMemorySize=(\d+)m", vmargs)
    assert len(heap) == len(direct) == 1, vmargs
    return int(heap[0]), int(direct[0])


def test_the_largest_request_is_the_greatest_of_the_models(tmp_path):
    models = [model(tmp_path, "a", 1000), model(tmp_path, "b", 90_000, packed=True)]
    assert front_end_changes(SHIPPED, SHIPPED, models)["max_request_size"] == str(90_000 + SLACK)
    assert front_end_changes({}, SHIPPED, models)["max_request_size"] == str(90_000 + SLACK)


def test_a_model_without_a_declaration_keeps_the_shipped_limit(tmp_path):
    models = [model(tmp_path, "a", 1000), model(tmp_path, "b", None)]
    assert front_end_changes(SHIPPED, SHIPPED, models)["max_request_size"] == SHIPPED["max_request_size"]


def test_numbers_of_the_users_own_stay(tmp_path):
    found = {"max_request_size": "5000", "vmargs": "-Xmx1g -XX:MaxDirectMemorySize=2g -Dx=y"}
    changes = front_end_changes(found, SHIPPED, [model(tmp_path, "a", 90_000)])
    assert changes == {"vmargs": found["vmargs"]}


def test_no_limit_is_beyond_an_int_of_java(tmp_path):
    changes = front_end_changes(SHIPPED, SHIPPED, [model(tmp_path, "a", 2**40)], memory=16 * GB)
    assert changes["max_request_size"] == str(2**31 - 1)


def test_memory_holds_the_queue_but_no_more_than_a_quarter_of_the_machine(tmp_path):
    small, large = model(tmp_path, "a", 10_000), model(tmp_path, "b", 60_000_000)
    heap, direct = memory_of(front_end_changes(SHIPPED, SHIPPED, [small], memory=64 * GB)["vmargs"])
    assert (heap << 20) == pytest.approx((512 << 20) + 1000 * (10_000 + SLACK), abs=1 << 20)
    assert 256 <= direct < 300
    heap, direct = memory_of(front_end_changes(SHIPPED, SHIPPED, [large], memory=16 * GB)["vmargs"])
    assert heap == direct == 4 * GB >> 20
    assert memory_of(front_end_changes(SHIPPED, SHIPPED, [large], memory=1 << 20)["vmargs"]) == (256, 256)


def test_other_words_of_the_vmargs_stay():
    words = front_end_changes(SHIPPED, SHIPPED, [])["vmargs"].split()
    kept = [each for each in SHIPPED["vmargs"].split() if not each.startswith(("-Xmx", "-XX:MaxDirect"))]
    assert kept == words[:-2]


def test_a_number_that_is_none_is_the_users_mistake(tmp_path):
    base = tmp_path / "base.properties"
    base.write_text("job_queue_size=many\n")
    with pytest.raises(ServingError, match=r"whole numbers: .*many"):
        server_settings(
            base,
            model_store=tmp_path,
            ports=dict.fromkeys(("inference_address", "management_address", "metrics_address"), 0),
        )
