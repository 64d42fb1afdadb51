"""A group over three hosts, which `dlrm join` brings: scores, a rank that is killed, a link that is cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from support.batches import random_batch, random_state, uncompiled
from support.hosts import Host, hosts, listens_everywhere
from support.sequences import ordered
from support.sharding import TOLERANCE

from dlrm_factory.config.options import ShardingOptions
from dlrm_factory.rendezvous import meeting_variables, write_secret
from dlrm_factory.scorer import Scorer
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.server.settings import free_ports
from dlrm_factory.weights.checkpoint import save_checkpoint

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 2.0
# Pooled tables and sequences.
DECLARATION = ordered(("row_wise", "table_wise", "row_wise", "table_wise"))
# Imports take most of a start, and long on a busy machine.
START_S = 120.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    # Copies of small tables would do without the others.
    sharding = ShardingOptions(timeout_s=TIMEOUT_S, replicate_below=0)
    declaration = msgspec.structs.replace(uncompiled(DECLARATION), sharding=sharding)
    save_checkpoint(folder / "model.safetensors", declaration, random_state(declaration))
    archive_model(folder / "model.safetensors", folder / "dlrm", archive_format="directory")
    return folder


def within(seconds: float, condition: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@contextlib.contextmanager
def process(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def ranks_under(joiner: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of ranks that a joiner has."""
    found = []
    for each in psutil.Process(joiner.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends
            if "dlrm_factory.ranks.remote" in each.cmdline():
                found.append(each)
    return found


def line_of(joiner: subprocess.Popen[str], start: str) -> str:
    """The next line of a joiner that starts so."""
    while not (line := joiner.stdout.readline()).startswith(start):
        assert line, f"{joiner.args} ended before it said {start}"
    return line


def test_three_hosts(store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_secret(secret)
    (port,) = free_ports(1)
    with hosts(3) as network, contextlib.ExitStack() as stack:
        environment = os.environ | meeting_variables(network[0].address, str(port), secret)
        environment |= {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "TMPDIR": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        }
        join = [str(Path(sys.executable).with_name("dlrm")), "join", "--leader", network[0].address]
        join += [
            "--store",
            str(store),
            "--models",
            "dlrm=dlrm",
            "--secret-file",
            str(secret),
            "--ports",
            str(port),
        ]
        joiners = [
            stack.enter_context(process(*host.prefix, *join, "--address", host.address))
            for host in network[1:]
        ]
        lead = [sys.executable, "-m", "support.leading", str(store / "dlrm"), "3"]

        with process(*lead, env=environment) as leader:
            found = answer(leader)
            expected = Scorer.load(store / "dlrm").logits(random_batch(DECLARATION, 30))
            assert found["ranks"] == 3
            np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=TOLERANCE)
            for joiner in joiners:
                assert f"{network[0].address}:{port} as host " in line_of(joiner, "joined with rank ")
            everywhere = [listens_everywhere(each.pid) for each in (leader, *ranks_under(joiners[0]))]
            assert everywhere == [[], []]
            ranks_under(joiners[1])[0].send_signal(signal.SIGKILL)
            # The group ends by itself, and whoever asks before that is told to ask again.
            ask(leader)
            assert leader.wait(30) == 75
        for joiner in joiners:
            assert f"waiting for a leader at {network[0].address}:{port}" in line_of(joiner, "the group at ")

        with process(*lead, env=environment) as leader:
            assert answer(leader)["logits"] == found["logits"]
            for joiner in joiners:
                line_of(joiner, "joined with rank ")
            lost = ranks_under(joiners[1])
            lose(network[2], joiners[1])
            lost_answer = ask(leader)
            assert lost_answer["error"].startswith("GroupError: ")
            assert lost_answer["seconds"] < TIMEOUT_S + 10
            # On the host that is cut off too.
            if network[2].link is not None:
                assert "not heard of" in line_of(joiners[1], "the group at ")
            assert within(10, lambda: not any(is_alive(rank) for rank in lost))
            assert leader.wait(30) == 75
        if network[2].link is not None:
            network[2].mend()

        left = [joiner for joiner in joiners if joiner.poll() is None]
        made = [rank for joiner in left for rank in ranks_under(joiner)]
        for joiner in left:
            joiner.send_signal(signal.SIGTERM)
        assert {joiner.wait(30) for joiner in left} == {0}
        assert not any(is_alive(rank) for rank in made)


def answer(leader: subprocess.Popen[str]) -> dict[str, object]:
    """The leader's next answer; the pid that it tells TorchServe comes before the first."""
    while not (line := leader.stdout.readline()).startswith("{"):
        assert line, "the leader ended before it answered"
    return json.loads(line)


def ask(leader: subprocess.Popen[str]) -> dict[str, object]:
    """Answer of the leader to a batch; an error if it has ended."""
    try:
        leader.stdin.write("\n")
        leader.stdin.flush()
        return answer(leader)
    except (BrokenPipeError, AssertionError):
        return {"error": "GroupError: the leader has ended", "seconds": 0.0}


def lose(host: Host, joiner: subprocess.Popen[str]) -> None:
    """Cut its link; end its joiner where it has none."""
    if host.link is None:
        joiner.kill()
    else:
        host.cut()


def is_alive(each: psutil.Process) -> bool:
    return each.is_running() and each.status() != psutil.STATUS_ZOMBIE
