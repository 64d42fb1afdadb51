"""A worker that is a group of ranks: TorchServe starts torchrun, and torchrun one process a rank.

::

    TorchServe ── torchrun ─┬─ rank 0, the leader, which has the requests
        │                   └─ ranks 1, 2, …, its followers
        └── a connection to each rank

When any of these connections ends, TorchServe answers the worker's batch with 500 and kills torchrun, but not its
ranks. When a rank ends, torchrun starts all of them anew, beside those of the worker that TorchServe starts. Neither
fits a group, which ends as a whole and after its answers. So

- each follower hands its connection to the leader, with whom it ends;
- the kernel kills every rank when torchrun ends, one that stands still too;
- whoever ends the group kills torchrun.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dlrm_factory.errors import GroupError
from dlrm_factory.ranks import RankedScorer, RankGroup, follow, load_rank
from dlrm_factory.requests.answers import Answer, answer_group_lost
from dlrm_factory.scorer import Scorer
from dlrm_factory.weights.sealed import SealedWeights
from handler.wire import call_before_waits

__all__ = ["WorkerGroup", "in_group", "process_state"]

logger = logging.getLogger(__name__)

_PROTOCOL = "ts.protocol.otf_message_handler"
_NOBODY = "none, for the group of ranks is lost (model_log.log says why)"
_SOCKET = ".ts.sock."  # names of TorchServe's sockets for its workers
_PR_SET_PDEATHSIG = 1
_TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h
# For the answers of a lost group, where nothing says when they have left.
_ANSWERS_LEAVE_S = 1.0
# Between the end of the leader's connection, by which TorchServe gives up the worker, and that of the others.
_LAST_READ_S = 0.1
_HAND_OVER_S = 30.0
# A leader that has lost a rank ends within `_ANSWERS_LEAVE_S`, unless it stands still.
_LEADER_ENDS_S = 3.0
_POLL_S = 0.02
_WATCH_S = 0.5


def in_group() -> bool:
    """Return True if this process is one of several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class WorkerGroup:
    """The group that this process is a rank of."""

    def __init__(self, weights: SealedWeights, ranks: RankGroup, torchrun: int | None) -> None:
        """``torchrun``: pid of the process that started the ranks; None where that is not torchrun."""
        self.ranks = ranks
        self._weights = weights
        self._torchrun = torchrun
        self._lost = False
        self._leader = os.getpid()
        self._connections: list[int] = []

    @classmethod
    def join(cls, folder: Path) -> WorkerGroup:
        """Join the group that serves the archive in ``folder``, over the loopback interface. All ranks call it.

        WeightsError if the archive is broken.
        """
        weights = SealedWeights(folder)
        torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        if torchrun is not None:
            _end_with(torchrun)
        # torch neither encrypts nor authenticates what ranks send.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        sharding = weights.declaration.sharding
        ranks = RankGroup.join(device=sharding.device, timeout_s=sharding.timeout_s)
        group = cls(weights, ranks, torchrun)
        # Python's own way out may wait for ranks that are gone.
        atexit.register(group.end)
        group._hand_over()
        return group

    @property
    def follows(self) -> bool:
        return self.ranks.rank > 0

    def lead(self) -> RankedScorer:
        """A scorer over all ranks, once each has loaded its part. For rank 0."""
        ranked = RankedScorer(load_rank(self._weights, self.ranks), self.ranks, on_loss=self._lose)

        def on_sigterm(*_: object) -> None:
            ranked.lose(GroupError("another rank has ended; send the request again"))

        # torchrun's, once it has seen a rank end. What is under way is answered first.
        signal.signal(signal.SIGTERM, on_sigterm)
        protocol = sys.modules.get(_PROTOCOL)
        if protocol is not None:
            call_before_waits(protocol, self._end_after_answers)
        # Every rank has printed its pid; TorchServe keeps the last one.
        sys.stdout.write(f"[PID]{os.getpid()}\n")
        sys.stdout.flush()
        return ranked

    def follow(self) -> None:
        """Do what rank 0 says, in a thread that ends the group when it cannot any more. For the other ranks."""
        scorer = load_rank(self._weights, self.ranks)
        torch.set_num_threads(scorer.declaration.serving.threads)
        threading.Thread(target=self._follow, args=(scorer,), daemon=True, name="follow").start()
        threading.Thread(target=self._watch_leader, daemon=True, name="watch").start()

    def last_answers(
        self,
        answers: list[Answer],
        headers: Sequence[Mapping[str, Any]],
        ids: MutableMapping[int, str] | None,
    ) -> list[Answer]:
        """Answers of a batch; those that lost the group are made the worker's last.

        TorchServe hands a worker its next batch within microseconds of its answers, and what ends the worker then fails
        that batch too. An answer to a request that nobody has made ends it in between: TorchServe sends the answers
        before it, and then fails the same requests, which have to be errors: these close a connection, and a second
        answer does not reach anybody. A call by gRPC takes no second answer, so batches with one are left as they are.

        Args:
            headers: of each request.
            ids: place in the batch → TorchServe's id of the request; changed.
        """
        if not (self._lost and ids and all(type(each.get("explain")) is str for each in headers)):
            return answers
        ids[-1] = _NOBODY
        return [
            answer if answer.status >= HTTPStatus.BAD_REQUEST else answer_group_lost() for answer in answers
        ]

    def end(self) -> NoReturn:
        """End all ranks on this host, this one too, at once."""
        if self._torchrun is not None and os.getppid() == self._torchrun:
            os.kill(self._torchrun, signal.SIGKILL)
        os._exit(_TEMPORARY_FAILURE)

    def _lose(self, error: GroupError) -> None:
        logger.critical("The group of ranks is lost, so this worker ends: %s", error)
        self._lost = True
        timer = threading.Timer(_ANSWERS_LEAVE_S, self.end)
        timer.daemon = True
        timer.start()

    def _end_after_answers(self, connection: socket.socket) -> None:
        """End a lost group once its last answer is written.

        TorchServe would take the end of a follower's connection for that of the worker, and forget an answer that it
        has not yet read from the leader's: so the leader's ends first.
        """
        if not self._lost:
            return
        connection.shutdown(socket.SHUT_RDWR)
        time.sleep(_LAST_READ_S)
        self.end()

    def _follow(self, scorer: Scorer) -> None:
        try:
            follow(scorer, self.ranks, folder=self._weights.folder)
        except GroupError as error:
            logger.error("%s", error)
        except Exception:
            logger.exception("This rank ends")
        give_up = time.monotonic() + _LEADER_ENDS_S
        while time.monotonic() < give_up and process_state(self._leader) not in "ZX":
            time.sleep(_POLL_S)
        self.end()

    def _watch_leader(self) -> None:
        """End the group if its leader is stopped for longer than a rank may be: no collective of its own would tell."""
        stopped_since: float | None = None
        while True:
            time.sleep(_WATCH_S)
            now = time.monotonic()
            if process_state(self._leader) != "T":
                stopped_since = None
                continue
            stopped_since = stopped_since or now
            if now - stopped_since >= self.ranks.timeout_s:
                logger.error("The leader (pid %d) stands still, so its group ends", self._leader)
                self.end()

    def _hand_over(self) -> None:
        """Tell all ranks the leader's pid, and give the leader the connections of its followers."""
        pid = torch.tensor([os.getpid()])
        if self.follows:
            dist.broadcast(pid, group_src=0, group=self.ranks.data)
            self._leader = int(pid)
            _send_connection(_hand_over_path(self._leader))
            return
        path = _hand_over_path(self._leader)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            path.unlink(missing_ok=True)
            receiver.bind(str(path))
            try:
                receiver.settimeout(_HAND_OVER_S)
                dist.broadcast(pid, group_src=0, group=self.ranks.data)
                for _ in range(1, self.ranks.size):
                    self._connections += socket.recv_fds(receiver, 1, 1)[1]
            except OSError as error:
                logger.warning("A rank's end will fail its batch with 500, not 503: %s", error)
            finally:
                path.unlink(missing_ok=True)


def process_state(pid: int) -> str:
    """State of a process as Linux names it: ``T`` is stopped by a signal, ``Z`` ended, and ``X`` is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return text.rpartition(")")[2].split()[0]


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_TEMPORARY_FAILURE)


def _hand_over_path(leader: int) -> Path:
    return Path(tempfile.gettempdir()) / f".dlrm.{leader}"


def _send_connection(path: Path) -> None:
    connection = _connection()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        if connection is None:
            sender.send(b"-")
        else:
            socket.send_fds(sender, [b"+"], [connection])


def _connection() -> int | None:
    """File descriptor of TorchServe's connection to this process; None if there is none."""
    for each in Path("/proc/self/fd").iterdir():
        descriptor = int(each.name)
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode) and _is_connection(descriptor):
                return descriptor
        except OSError:
            continue  # the listing's own
    return None


def _is_connection(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            return False
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return not listens and Path(str(found.getsockname())).name.startswith(_SOCKET)
