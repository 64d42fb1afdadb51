"""`dlrm join` with a leader in this process, and with ranks that do nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.batches import random_state, uncompiled
from support.rendezvous import SECRET
from typer.testing import CliRunner

from dlrm_factory.config import tiny
from dlrm_factory.errors import GroupError, ServingError
from dlrm_factory.rendezvous import MeetingPlace, ModelIdentity, Rendezvous
from dlrm_factory.tools.archive.sealing import archive_model
from dlrm_factory.tools.cli.main import app
from dlrm_factory.tools.join import JoinOptions, join_leader, joining
from dlrm_factory.tools.join.rank_process import RankProcess
from dlrm_factory.tools.server.settings import free_ports
from dlrm_factory.weights.checkpoint import save_checkpoint


class IdleRank(RankProcess):
    """Never looks at its place in the group."""

    made: list[IdleRank]

    def __init__(self, folder: Path) -> None:
        self.number, self._folder, self._stopped_since, self._made = -1, folder, None, time.monotonic()
        self._process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
        self.made.append(self)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    declaration = uncompiled(tiny())
    save_checkpoint(folder / "tiny.safetensors", declaration, random_state(declaration))
    archive_model(folder / "tiny.safetensors", folder / "dlrm", archive_format="directory")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeetingPlace:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(joining, "RankProcess", IdleRank)
    monkeypatch.setattr(joining, "_REFUSED_S", 0.1)
    monkeypatch.setattr(joining, "_LOOK_S", 0.05)
    IdleRank.made = []
    (tmp_path / "secret").touch(0o600)
    (tmp_path / "secret").write_bytes(SECRET)
    (port,) = free_ports(1)
    return MeetingPlace(address="127.0.0.1", ports=range(port, port + 1), secret=SECRET)


class Told:
    """Lines that a host tells; a call waits for one that starts so, and takes it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, start: str) -> bool:
        end = time.monotonic() + 10
        while not (found := [line for line in self.told if line.startswith(start)]):
            assert time.monotonic() < end, f"{start!r} is not among {self.told}"
            time.sleep(0.01)
        self.told.remove(found[0])
        return True


@contextlib.contextmanager
def joined(store: Path, secret: Path, place: MeetingPlace) -> Iterator[Told]:
    """A host that joins until the block ends."""
    tells, stop = Told(), threading.Event()
    options = JoinOptions(
        leader=place.address,
        model_store=store,
        models=("dlrm=dlrm",),
        secret_file=secret,
        ports=str(place.ports[0]),
        address="127.0.0.2",
    )
    thread = threading.Thread(target=join_leader, args=(options, tells.told.append, stop))
    thread.start()
    try:
        yield tells
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        assert not any(rank.lives() for rank in IdleRank.made)


def lead(store: Path, place: MeetingPlace, losses: list[GroupError], model: str = "dlrm") -> Rendezvous:
    made = Rendezvous(place, ModelIdentity.of(store / "dlrm", model), world_size=4, hosts=2)
    made.wait(10)
    made.start(4711, losses.append)
    return made


def test_ranks_are_served_for_one_group_after_the_other(
    store: Path, place: MeetingPlace, tmp_path: Path
) -> None:
    at = f"{place.text} as host 1 of 2"
    waits = f"waiting for a leader at {place.text} (model dlrm)"
    with joined(store, tmp_path / "secret", place) as tells:
        assert tells(waits)
        first = lead(store, place, [])
        assert tells(f"admitted at {at} (model dlrm)")
        assert tells(f"joined with ranks 2 to 3 at {at}")
        assert [rank.number for rank in IdleRank.made] == [2, 3]
        first.close()
        assert tells(f"the group at {at} has ended: it closed the connection; {waits}")
        # The next group gets processes that were made while its leader started.
        losses: list[GroupError] = []
        second = lead(store, place, losses)
        assert tells(f"joined with ranks 2 to 3 at {at}")
        assert [rank.number for rank in IdleRank.made] == [2, 3, 2, 3]
        assert [rank.lives() for rank in IdleRank.made] == [False, False, True, True]
        os.kill(IdleRank.made[2].pid, signal.SIGKILL)
        assert tells(f"the group at {at} has ended: rank 2 ended by signal 9; {waits}")
        assert str(losses[0]).startswith("host 1 (127.0.0.2) is gone (rank 2 ended by signal 9)")
        second.close()
        # One that stands still counts as gone after the model's deadline.
        third = lead(store, place, losses)
        third.serve(1.0, losses.append)
        assert tells("joined with")
        os.kill(IdleRank.made[-1].pid, signal.SIGSTOP)
        assert tells(f"the group at {at} has ended: rank 3 stands still; {waits}")
        third.close()
        # A leader that says nothing any more is gone, although its connection is there.
        fourth = lead(store, place, losses)
        fourth.serve(1.0, losses.append)
        fourth._ended.set()
        assert tells(f"the group at {at} has ended: its leader was not heard of for 1 s; {waits}")
        fourth.close()
        lead(store, place, losses)
        assert tells("joined with")
    assert tells(f"left {at}")


def test_spare_ranks_do_not_wait_for_ever(
    store: Path, place: MeetingPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_SPARE_S", 0.2)
    with joined(store, tmp_path / "secret", place) as tells:
        leader = lead(store, place, [])
        assert tells("joined with")
        leader.close()
        assert tells("the group at")
        end = time.monotonic() + 10
        while (alive := [rank.lives() for rank in IdleRank.made]) != [False] * 4:
            assert time.monotonic() < end, alive
            time.sleep(0.05)


def test_what_the_leader_refuses_is_told_once(store: Path, place: MeetingPlace, tmp_path: Path) -> None:
    with joined(store, tmp_path / "secret", place) as tells:
        assert tells("waiting for a leader")
        leader = Rendezvous(place, ModelIdentity.of(store / "dlrm", "ads"), world_size=2, hosts=2)
        reason = 'model: the leader serves "ads", this host has "dlrm"'
        assert tells(f"refused at {place.text}: {reason}")
        time.sleep(0.5)
        assert tells.told == []
        leader.close()


def test_options_that_cannot_be_are_told_at_once(store: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o600)
    (tmp_path / "secret").write_bytes(SECRET)
    arguments = ["join", "--leader", "127.0.0.1", "--store", str(store), "--models", "dlrm=dlrm"]
    secret = ["--secret-file", str(tmp_path / "secret")]
    for options, message in (
        ([*secret, "--ports", "7-6"], "are not FIRST-LAST"),
        (["--secret-file", str(tmp_path / "none")], "cannot be read"),
        ([*secret, "--models", "ads=ads.mar"], 'no archive "ads.mar"'),
    ):
        error = CliRunner().invoke(app, arguments + options).exception
        assert isinstance(error, ServingError), error
        assert message in str(error)
