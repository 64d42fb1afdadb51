"""The raw tools, as the README shows them: stage, torch-model-archiver, torchserve, curl."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from support.batches import uncompiled

from dlrm_factory.config import tiny
from dlrm_factory.model.model import make_model
from dlrm_factory.requests.request import Request
from dlrm_factory.requests.service import DLRMService
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.java import find_java
from dlrm_factory.tools.server.settings import free_ports
from dlrm_factory.weights.checkpoint import save_checkpoint
from dlrm_factory.weights.sealed import seal_folder

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BODY = {
    "instances": [
        {"price": 9.5, "age_days": 3, "user_id": "u17", "item_id": 5, "item_tags": [3, 9]},
        {"price": 1.0, "user_id": 45821459, "item_id": 199, "item_tags": []},
        {"item_id": 0},
    ]
}

# Code of its own for one of the two archives: were the installed code used, its scores would be real ones.
PATCH = """

def answered_probabilities(logits: npt.NDArray[np.floating]) -> Float64:
    return np.full(len(logits), 0.25)
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    folder: Path
    staged: Path
    inference: str
    management: str

    def curl(self, *words: str, key: str) -> Any:
        """The JSON answer to a curl command; ``key`` names the token: inference or management."""
        tokens = json.loads((self.folder / "key_file.json").read_text())
        return request(*words, "-H", f"Authorization: Bearer {tokens[key]['key']}")

    def ready_workers(self, model: str) -> int:
        described = self.curl(f"{self.management}/models/{model}", key="management")
        return sum(worker["status"] == "READY" for worker in described[0]["workers"])


def request(*words: str) -> Any:
    """Runs curl, or does the like with httpx on a machine that has no curl."""
    if curl := shutil.which("curl"):
        ran = subprocess.run([curl, "-sS", *words], capture_output=True, text=True, timeout=60, check=True)
        return json.loads(ran.stdout)
    options = {flag: value for flag, value in itertools.pairwise(words) if flag in ("-X", "-d")}
    headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
    url = next(word for word in words if word.startswith("http://"))
    method = options.get("-X", "POST" if "-d" in options else "GET")
    return httpx.request(method, url, content=options.get("-d"), headers=headers, timeout=60).json()


def until(condition: Callable[[], bool], what: str, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except (OSError, subprocess.CalledProcessError, httpx.HTTPError, LookupError, ValueError):
            pass  # not up yet
        time.sleep(0.5)
    said = log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.exists() else "no log"
    pytest.fail(f"{what} did not come in {seconds} s:\n{said}")


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    words = [str(BIN / command[0]), *command[1:]]
    # Into a file: a server that stays would hold a pipe open.
    with (folder / "output.txt").open("w+") as output:
        status = subprocess.run(
            words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=180
        ).returncode
        output.seek(0)
        printed = output.read()
    assert status == 0, f"{shlex.join(command)}\n{printed}"
    return printed


def archive(folder: Path, environment: dict[str, str]) -> None:
    """Two archives by `torch-model-archiver` with the command that `dlrm stage` printed, one with a patch."""
    words = ["dlrm", "stage", "tiny.safetensors", "--output", "staged", "--model-name", "dlrm"]
    command = run(words, folder, environment).splitlines()[-1]
    run(shlex.split(command), folder, environment)
    shutil.copytree(folder / "staged", folder / "patched")
    numbers = folder / "patched" / "dlrm_factory/requests/numbers.py"
    numbers.write_text(numbers.read_text(encoding="utf-8") + PATCH, encoding="utf-8")
    expect(folder / "patched", 0.25)
    command = command.replace("staged", "patched").replace("--model-name dlrm", "--model-name patched")
    run(shlex.split(command), folder, environment)


def expect(staged: Path, score: float) -> None:
    """Let the golden requests want ``score``: code that scores otherwise would not get past them."""
    goldens = json.loads((staged / "goldens.json").read_bytes())
    for golden in goldens["requests"]:
        golden["expected"] = score
    (staged / "goldens.json").write_text(json.dumps(goldens), encoding="utf-8")
    seal_folder(staged)


def write_settings(folder: Path) -> tuple[str, str]:
    """The repository's config.properties on free ports; (inference address, management address)."""
    text = (REPOSITORY / "config.properties").read_text(encoding="utf-8")
    ports = free_ports(5)
    for old, new in zip(("8080", "8081", "8082", "7070", "7071"), ports, strict=True):
        text = re.sub(rf"(?m)^(\w+=(?:http://127\.0\.0\.1:)?){old}$", rf"\g<1>{new}", text)
    text = text.replace("configurationFile=", f"configurationFile={REPOSITORY}/")
    (folder / "config.properties").write_text(text, encoding="utf-8")
    return f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("raw")
    (folder / "model_store").mkdir()
    (folder / "tmp").mkdir()
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
        "JAVA_HOME": str(find_java().parent.parent),
        "TMPDIR": str(folder / "tmp"),
        "TEMP": str(folder / "tmp"),  # where the server unpacks archives
        # The worst case: the machine's own copy of this project comes before the archive's.
        "PYTHONPATH": str(REPOSITORY),
    }
    generator = torch.Generator().manual_seed(7)
    shapes = make_model(tiny(), dense_device="meta").state_dict()
    state = {key: 0.3 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()}
    save_checkpoint(folder / "tiny.safetensors", uncompiled(tiny()), state)
    archive(folder, environment)
    inference, management = write_settings(folder)
    found = Server(folder=folder, staged=folder / "staged", inference=inference, management=management)
    words = "--start --ncs --ts-config config.properties --model-store model_store --models"
    run(["torchserve", *words.split(), "dlrm=dlrm.mar", "patched=patched.mar"], folder, environment)
    pid = int((folder / "tmp/.model_server.pid").read_text())
    try:
        for model in ("dlrm", "patched"):
            until(lambda name=model: found.ready_workers(name) == 1, model, folder / "logs/model_log.log")
        yield found
    finally:
        workers = psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []
        run(["torchserve", "--stop"], folder, environment)
        left = psutil.wait_procs([*workers, *_process(pid)], timeout=30)[1]
        for process in left:
            process.kill()
        assert not left


def _process(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []


def predict(server: Server, model: str) -> Any:
    json_type = ("-H", "Content-Type: application/json")
    url = f"{server.inference}/predictions/{model}"
    return server.curl("-X", "POST", *json_type, "-d", json.dumps(BODY), url, key="inference")


def test_the_scores_are_those_of_the_model_called_directly(server: Server) -> None:
    service = DLRMService(Scorer.load(server.staged))
    (answer,) = service.handle([Request(json.dumps(BODY).encode())])
    expected = json.loads(answer.body)["predictions"]
    scores = predict(server, "dlrm")["predictions"]
    assert len(scores) == 3
    assert len({round(score, 6) for score in scores}) == 3
    assert scores == pytest.approx(expected, abs=1e-6)


def test_the_archives_own_code_wins_over_the_installed(server: Server) -> None:
    assert predict(server, "patched")["predictions"] == [0.25, 0.25, 0.25]


def test_workers_are_scaled_through_the_management_address(server: Server) -> None:
    server.curl("-X", "PUT", f"{server.management}/models/dlrm?min_worker=2", key="management")
    until(lambda: server.ready_workers("dlrm") == 2, "worker 2", server.folder / "logs/model_log.log")
    before = predict(server, "dlrm")["predictions"]
    for _ in range(8):
        assert predict(server, "dlrm")["predictions"] == pytest.approx(before, abs=1e-6)


def test_model_config_reaches_torchserve(server: Server) -> None:
    (described,) = server.curl(f"{server.management}/models/patched", key="management")
    assert {key: described[key] for key in ("batchSize", "maxBatchDelay", "minWorkers", "maxWorkers")} == {
        "batchSize": 64,
        "maxBatchDelay": 1,
        "minWorkers": 1,
        "maxWorkers": 4,
    }
    assert (described["responseTimeout"], described["startupTimeout"]) == (60, 600)
