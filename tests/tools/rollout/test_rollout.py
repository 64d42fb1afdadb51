"""Steps of a rollout and the way back, on a server in memory."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from support.management import InMemoryManagement, version_of

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout import (
    RolloutOptions,
    checking,
    going_back,
    keeping,
    read_history,
    remove_kept,
    removing,
    roll_back,
    roll_out,
    rollout,
)
from dlrm_factory.tools.rollout.judging import VersionFigures
from dlrm_factory.tools.rollout.state import KeptVersion, RolloutFile, RunningRollout
from dlrm_factory.tools.server import RunDir

QUICK = {"watch_s": 0.6}


def figures(score: float = 0.5, **changes: Any) -> VersionFigures:
    usual = {"requests": 1000, "errors": 0, "times": np.full(1000, 10.0)}
    return VersionFigures(**{**usual, "scores": np.full(1000, score) + np.linspace(0, 0.1, 1000), **changes})


class Server:
    """A server of "dlrm" 1.0; what its workers tell of live requests is in ``live``."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.client = InMemoryManagement(version_of("1.0", pids=(1,)))
        self.live = {"1.0": figures(), "2.0": figures()}
        self.wrong: ServingError | None = None
        self.memory_lacks = False
        self.removed: list[str] = []
        self.sidecars = 0
        self.sidecar_wrong: dict[int, ServingError] = {}
        self.meanwhile: Callable[[], None] = lambda: None
        self.lines: list[str] = []
        self.shares: list[float] = []

    def roll_out(self, **options: Any) -> Any:
        chosen = RolloutOptions(archive=Path("new.mar"), run_dir=self.run_dir.root, **{**QUICK, **options})
        return roll_out(chosen, self.lines.append)

    @property
    def file(self) -> RolloutFile:
        return RolloutFile(self.run_dir)

    @property
    def history(self) -> list[tuple[str, str, str]]:
        return [(each["from"], each["to"], each["outcome"]) for each in read_history(self.run_dir.root)]

    def bring(self, client: InMemoryManagement, new: Any, **others: Any) -> None:
        if self.wrong:
            raise self.wrong
        client.found[new.version] = version_of(new.version, pids=(2,))

    def remove(self, client: InMemoryManagement, model: str, version: str, **others: Any) -> None:
        assert client.default != version
        self.removed.append(version)
        self.meanwhile()
        client.found.pop(version, None)

    def check_room(self, archive: Path, old: Any, state: Any, *, may_lack: bool, tell: Any) -> None:
        assert old.version == self.client.default
        if self.memory_lacks and not may_lack:
            raise ServingError("there is no room")

    def launch(self, run_dir: RunDir) -> None:
        self.sidecars += 1
        if self.sidecars in self.sidecar_wrong:
            raise self.sidecar_wrong[self.sidecars]

    def watch(self, temporary: Path, workers: Any, **others: Any) -> Any:
        def look(version: str) -> VersionFigures:
            canary = self.file.model("dlrm").canary
            self.shares.append(canary.share if canary else 0.0)
            return self.live[version]

        return contextlib.nullcontext(SimpleNamespace(figures=look))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    run_dir = RunDir.at(tmp_path / "run")
    run_dir.prepare()
    made = Server(run_dir)
    state = SimpleNamespace(tmp=str(tmp_path), model_store=str(tmp_path))
    declaration = SimpleNamespace(serving=SimpleNamespace(max_body_bytes=100))
    new = SimpleNamespace(path=tmp_path / "new.mar", version="2.0", declaration=declaration)

    @contextlib.contextmanager
    def client(run_dir: RunDir, state: Any) -> Iterator[InMemoryManagement]:
        yield made.client

    for name, value in {
        "running_server": lambda path: state,
        "management_client": client,
        "open_version": lambda archive, model, state: new,
        "bring_version": made.bring,
        "remove_version": made.remove,
        "check_room": made.check_room,
        "launch_sidecar": made.launch,
        "Watch": made.watch,
    }.items():
        monkeypatch.setattr(rollout, name, value)
        if hasattr(going_back, name):
            monkeypatch.setattr(going_back, name, value)
    monkeypatch.setattr(keeping, "remove_version", made.remove)
    for name, value in {
        "remove_version": made.remove,
        "check_group": lambda new, old: None,
        "check_body_limit": lambda new, run_dir: None,
    }.items():
        monkeypatch.setattr(checking, name, value)
    monkeypatch.setattr(rollout, "_MAX_BASELINE_S", 0.1)
    monkeypatch.setattr(rollout, "_LOOK_S", 0.1)
    return made


def kept(server: Server) -> list[str]:
    return [each.version for each in server.file.model("dlrm").kept]


def test_the_new_version_becomes_the_default_and_the_old_one_is_kept(server: Server) -> None:
    done = server.roll_out(keep_s=100)
    assert (done.old, done.new, server.client.default) == ("1.0", "2.0", "2.0")
    assert done.steps["watch"]["new"]["requests"] == 1000
    assert server.removed == []
    assert kept(server) == ["1.0"]
    # Also at the end: it may have died during the watch.
    assert server.sidecars == 2
    assert server.history == [("1.0", "2.0", "done")]
    assert [line.split()[0] for line in server.lines] == ["bring", "bring", "switch", "watch"]


def test_what_was_kept_goes_when_its_time_is_over(server: Server) -> None:
    server.roll_out(keep_s=100)
    state = SimpleNamespace(tmp=str(server.run_dir.root))
    assert remove_kept(server.run_dir, state, server.client) == 0
    with server.file.no_removal(0.0), server.file.held(0.0):
        # A rollout runs.
        assert remove_kept(server.run_dir, state, server.client, now=time.time() + 101) == 0
    assert remove_kept(server.run_dir, state, server.client, now=time.time() + 101) == 1
    assert server.removed == ["1.0"]
    assert kept(server) == []
    assert server.file.model("dlrm").folders.keys() == {"2.0"}


def test_rolling_back_makes_the_kept_version_the_default(server: Server) -> None:
    server.roll_out()
    assert roll_back("dlrm", server.run_dir.root) == ("2.0", "1.0")
    assert server.client.default == "1.0"
    assert kept(server) == ["2.0"]
    assert server.history[-1] == ("2.0", "1.0", "rolled back")
    # The version that was left is removed at once, and not what it was left for.
    assert remove_kept(server.run_dir, SimpleNamespace(tmp=""), server.client) == 1
    assert server.removed == ["2.0"]
    with pytest.raises(ServingError, match=r"no version of dlrm to go back to: 1\.0 is served"):
        roll_back("dlrm", server.run_dir.root)


def test_a_kept_version_without_workers_is_not_gone_back_to(server: Server) -> None:
    server.roll_out()
    server.client.found["1.0"] = version_of("1.0", pids=(1,), ready=False)
    with pytest.raises(ServingError, match="no version of dlrm to go back to"):
        roll_back("dlrm", server.run_dir.root)
    assert server.client.default == "2.0"


def assert_untouched(server: Server) -> None:
    assert server.client.default == "1.0"
    assert list(server.client.found) == ["1.0"]
    found = server.file.model("dlrm")
    assert (found.canary, found.running, found.kept, found.folders) == (None, None, (), {})
    assert server.history == [("1.0", "2.0", "aborted")]


def test_workers_that_do_not_come_up_leave_the_old_version_as_it_was(server: Server) -> None:
    server.wrong = ServingError('model "dlrm" did not load: golden request 3 gives 0.4, not 0.5')
    with pytest.raises(
        ServingError, match=r"(?s)dlrm 2\.0 was not rolled out: .*golden request 3.*1\.0 answers as before"
    ):
        server.roll_out()
    assert_untouched(server)
    assert "golden request 3" in read_history(server.run_dir.root)[0]["reason"]


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"errors": 100}, "100 of 1000 requests got an error"),
        ({"times": np.full(1000, 50.0)}, "p99 is 50.0 ms"),
        ({"score": 0.9}, "scores have shifted"),
    ],
)
@pytest.mark.parametrize("step", ["watch", "canary"])
def test_a_version_that_is_worse_is_taken_back(
    server: Server, worse: dict[str, Any], said: str, step: str
) -> None:
    server.live["2.0"] = figures(**worse)
    with pytest.raises(ServingError, match=f"{step}: .*{said}"):
        server.roll_out(canary=0.1 if step == "canary" else 0.0, canary_s=0.3)
    assert_untouched(server)
    # Before the switch nobody has asked the new one by default.
    assert (("default", "2.0") in server.client.calls) == (step == "watch")


def test_the_share_of_a_canary_is_told_to_clients_while_it_takes(server: Server) -> None:
    done = server.roll_out(canary=0.1, canary_s=0.3)
    assert 0.1 in server.shares
    assert server.file.model("dlrm").canary is None
    assert done.steps["canary"]["new"]["requests"] == 1000


def test_a_canary_that_nobody_asks_proves_nothing(server: Server) -> None:
    server.live["2.0"] = figures(requests=3)
    with pytest.raises(ServingError, match=r"the canary got 3 requests in 0.3 s, and needs 50: clients must"):
        server.roll_out(canary=0.1, canary_s=0.3)
    assert_untouched(server)


def test_an_interrupt_takes_the_new_version_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "wrong", None)
    monkeypatch.setattr(rollout, "problems_of", interrupt)
    with pytest.raises(ServingError, match="it was interrupted"):
        server.roll_out()
    assert_untouched(server)


def test_a_version_that_is_registered_is_named(server: Server) -> None:
    server.client.found["2.0"] = version_of("2.0")
    with pytest.raises(ServingError, match=r"dlrm 2\.0 is registered already \(1\.0, 2\.0 are\)"):
        server.roll_out()
    assert server.removed == []


def test_what_a_killed_rollout_left_is_removed_first(server: Server) -> None:
    server.client.found["2.0"] = version_of("2.0")
    dead = RunningRollout(pid=psutil.Process().pid, started=1.0, version="2.0")
    server.file.change("dlrm", running=dead, folders={"2.0": "/nowhere"})
    server.roll_out()
    assert server.removed == ["2.0"]
    assert server.client.default == "2.0"


def test_one_rollout_at_a_time(server: Server) -> None:
    server.file.change("dlrm", running=RunningRollout.own("3.0"))
    with pytest.raises(ServingError, match=r"a rollout of dlrm 3\.0 runs \(pid \d+\)"):
        server.roll_out()


def test_older_kept_versions_go_at_the_next_rollout(server: Server) -> None:
    server.client.found["0.9"] = version_of("0.9")
    server.file.change("dlrm", kept=(KeptVersion(version="0.9", until=time.time() + 1000),))
    server.roll_out()
    assert kept(server) == ["1.0", "0.9"]
    assert remove_kept(server.run_dir, SimpleNamespace(tmp=""), server.client) == 1
    assert server.removed == ["0.9"]


def test_lines_of_the_history_that_are_broken_are_left_out(server: Server) -> None:
    server.run_dir.rollout_history.write_text(
        '{"to": "2.0"}\nhalf a li\n[]\n' + json.dumps({"to": "3.0"}) + "\n"
    )
    assert [each["to"] for each in read_history(server.run_dir.root)] == ["2.0", "3.0"]


def test_a_state_that_cannot_be_read_is_none(server: Server) -> None:
    server.run_dir.rollout_file.write_text("[")
    assert server.file.models() == {}


def test_a_version_that_answers_again_is_not_removed(server: Server) -> None:
    server.file.change(
        "dlrm", kept=(KeptVersion(version="1.0", until=0.0), KeptVersion(version="0.9", until=0.0))
    )
    server.client.found["0.9"] = version_of("0.9")
    assert remove_kept(server.run_dir, SimpleNamespace(tmp=""), server.client) == 1
    assert server.removed == ["0.9"]


def test_without_room_in_memory_nothing_is_brought_unless_it_may_lack(server: Server) -> None:
    server.memory_lacks = True
    with pytest.raises(ServingError, match="there is no room"):
        server.roll_out()
    assert (list(server.client.found), server.history) == (["1.0"], [])
    assert server.roll_out(may_lack_memory=True).new == "2.0"


def remove_what_is_due(server: Server, seconds: float = 0.0) -> int:
    return remove_kept(server.run_dir, SimpleNamespace(tmp=""), server.client, now=time.time() + seconds)


def test_a_roll_back_does_not_wait_for_the_removal_of_another_version(server: Server) -> None:
    server.client.found["0.9"] = version_of("0.9")
    server.file.change("dlrm", kept=(KeptVersion(version="0.9", until=0.0),), folders={"0.9": "/nowhere"})
    server.roll_out()
    found = []

    def meanwhile() -> None:
        server.meanwhile = lambda: None
        found.append(roll_back("dlrm", server.run_dir.root, server.lines.append))

    server.meanwhile = meanwhile
    assert remove_what_is_due(server) == 1
    assert (found, server.removed, server.client.default) == ([("2.0", "1.0")], ["0.9"], "1.0")
    # Neither has undone what the other wrote.
    assert kept(server) == ["2.0"]
    assert server.file.model("dlrm").folders.keys() == {"2.0"}
    assert not any("waiting" in line for line in server.lines)


def test_a_version_whose_removal_has_begun_is_not_gone_back_to(server: Server) -> None:
    server.roll_out(keep_s=100)

    def meanwhile() -> None:
        with pytest.raises(ServingError, match="no version of dlrm to go back to"):
            roll_back("dlrm", server.run_dir.root)

    server.meanwhile = meanwhile
    assert remove_what_is_due(server, 101) == 1
    assert (server.removed, server.client.default, kept(server)) == (["1.0"], "2.0", [])


def test_a_removal_that_fails_is_tried_again(server: Server) -> None:
    server.roll_out(keep_s=100)

    def fail() -> None:
        raise ServingError("the server hangs")

    server.meanwhile = fail
    assert remove_what_is_due(server, 101) == 0
    assert kept(server) == ["1.0"]
    server.meanwhile = lambda: None
    assert remove_what_is_due(server, 101) == 1
    assert kept(server) == []


def test_a_rollout_waits_for_a_removal(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "MAX_REMOVAL_S", 0.1)
    with (
        server.file.no_removal(0.0),
        pytest.raises(ServingError, match="the removal of a version, or a rollout, is under way"),
    ):
        server.roll_out()
    assert list(server.client.found) == ["1.0"]


def test_as_long_as_a_removal_can_take_is_waited() -> None:
    steps = [value for name, value in vars(removing).items() if re.fullmatch(r"_[A-Z_]+_S", name)]
    assert len(steps) > 3
    assert sum(steps) < going_back.MAX_REMOVAL_S


@pytest.fixture
def other_rollout(server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """A rollout of 2.0 by another process."""
    server.client.found["2.0"] = version_of("2.0", pids=(2,))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        started = psutil.Process(process.pid).create_time()
        running = RunningRollout(pid=process.pid, started=started, version="2.0")
        server.file.change("dlrm", running=running)
        yield process
        process.kill()


def test_a_roll_back_ends_the_rollout_and_says_what_it_waits_for(
    server: Server, other_rollout: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(going_back, "_TOLD_AFTER_S", 0.1)
    with contextlib.ExitStack() as held:
        held.enter_context(server.file.held(0.0))

        def tell(line: str) -> None:
            server.lines.append(line)
            if "waiting" in line:
                held.close()

        assert roll_back("dlrm", server.run_dir.root, tell) == ("2.0", "1.0")
    assert other_rollout.wait(timeout=30) != 0
    assert server.lines[0].startswith("ending the rollout of dlrm 2.0")
    assert server.lines[1].startswith("waiting until dlrm 2.0 is removed, for at most 180 s")


def test_a_rollout_that_was_done_before_it_was_ended_is_gone_back_from(
    server: Server, other_rollout: subprocess.Popen[bytes]
) -> None:
    server.client.default = "2.0"
    server.file.change("dlrm", kept=(KeptVersion(version="1.0", until=time.time() + 100),))
    assert roll_back("dlrm", server.run_dir.root) == ("2.0", "1.0")
    assert (server.client.default, kept(server)) == ("1.0", ["2.0"])


def test_a_roll_back_names_the_rollout_of_another_model(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(going_back, "_TOLD_AFTER_S", 0.1)
    server.file.change("other", running=RunningRollout.own("7.0"))
    with (
        server.file.held(0.0),
        pytest.raises(ServingError, match=r"a rollout of other 7\.0 runs \(pid \d+\)"),
    ):
        roll_back("dlrm", server.run_dir.root)


def test_a_process_beside_the_server_that_does_not_start(server: Server) -> None:
    wrong = ServingError("the process beside the server cannot be started")
    server.sidecar_wrong = {1: wrong, 3: wrong, 4: wrong}
    with pytest.raises(ServingError, match="not rolled out: the process beside the server cannot be started"):
        server.roll_out()
    assert_untouched(server)
    # What is done stays so, and is told.
    server.lines.clear()
    server.roll_out()
    assert server.client.default == "2.0"
    assert server.lines[-1].startswith("warning: the process beside the server cannot be started")
    assert roll_back("dlrm", server.run_dir.root, server.lines.append) == ("2.0", "1.0")
    assert server.lines[-1].startswith("warning:")
