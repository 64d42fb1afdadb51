"""A rollout, step by step. Whatever fails, the version that was served goes on.

::

    check ── bring ── [shadow] ── [canary] ── switch ── watch ── keep
      │        │          │           │                   │
      └────────┴──────────┴───────────┴── abort: remove the new version
                                                          └── switch back, then the same
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.rollout.checking import check_alone, check_version, clear_interrupted
from dlrm_factory.tools.rollout.going_back import MAX_REMOVAL_S, Tell, launch_or_tell
from dlrm_factory.tools.rollout.judging import MIN_REQUESTS, RolloutBounds, problems_of
from dlrm_factory.tools.rollout.removing import remove_version
from dlrm_factory.tools.rollout.room import check_room
from dlrm_factory.tools.rollout.shadow import compare_on_live_requests
from dlrm_factory.tools.rollout.state import (
    CanaryShare,
    KeptVersion,
    RolloutFile,
    RunningRollout,
    add_history,
    history_entry,
)
from dlrm_factory.tools.rollout.versions import NewVersion, bring_version, new_folder, open_version
from dlrm_factory.tools.rollout.watching import Watch
from dlrm_factory.tools.rollout.words import count, figures_of, live_line, reason_of, shadow_line
from dlrm_factory.tools.server import (
    ManagementClient,
    ModelVersion,
    Progress,
    RunDir,
    ServerState,
    find_endpoint,
    management_client,
    running_server,
)
from dlrm_factory.tools.server.processes import launch_sidecar

__all__ = ["RolloutOptions", "RolloutResult", "roll_out"]

_MAX_BASELINE_S = 5.0
_LOOK_S = 0.5
_TELL_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Options of a rollout.

    Args:
        archive: of the new version: a path, or a name in the server's model store.
        model: its name on the server.
        run_dir: of the server.
        canary: share of the keys that ask the new version before it is the default, from 0 to 1; 0 for none.
        canary_s: seconds for which they do.
        shadow: score live requests by both versions first.
        shadow_requests: how many.
        shadow_s: seconds to wait for them.
        watch_s: seconds to watch the new version once it is the default; 0 for none.
        keep_s: seconds for which the old version stays, so that `dlrm rollback` can go back to it.
        bounds: of the new version's figures.
        timeout: seconds until the new version's workers must be ready.
        may_lack_memory: roll out also where the new version's workers do not fit in memory.
    """

    archive: Path
    model: str = "dlrm"
    run_dir: Path = Path(".dlrm")
    canary: float = 0.0
    canary_s: float = 600.0
    shadow: bool = False
    shadow_requests: int = 500
    shadow_s: float = 60.0
    watch_s: float = 10.0
    keep_s: float = 600.0
    bounds: RolloutBounds = field(default_factory=RolloutBounds)
    timeout: float = 600.0
    may_lack_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """A rollout that is done: versions, seconds, and what each step found."""

    model: str
    old: str
    new: str
    seconds: float
    steps: dict[str, Any]


def roll_out(
    options: RolloutOptions,
    tell: Tell = lambda _: None,
    tell_workers: Callable[[Progress], None] = lambda _: None,
) -> RolloutResult:
    """Make the archive the default version of a model on a running server, as `dlrm rollout` does.

    Args:
        options: archive, model and bounds.
        tell: called with a line for each step.
        tell_workers: called while workers load.

    Raises:
        ServingError: it was not rolled out; the version that was served answers as before.
    """
    run_dir = RunDir.at(options.run_dir)
    state = running_server(options.run_dir)
    if state is None:
        raise ServingError(
            f"no server runs in {run_dir.root}; start one with `dlrm serve`, or give --run-dir"
        )
    new = open_version(options.archive, options.model, state)
    file = RolloutFile(run_dir)
    check_alone(file)
    # In this order. A removal may be under way, or a roll-back.
    with (
        file.no_removal(MAX_REMOVAL_S),
        file.held(MAX_REMOVAL_S),
        management_client(run_dir, state) as client,
    ):
        clear_interrupted(file, state, client, options.model)
        old = client.describe(options.model)
        check_version(client, new, old, run_dir, state)
        check_room(new.path, old, state, may_lack=options.may_lack_memory, tell=tell)
        return _Rollout(options, run_dir, state, client, file, old, new, tell, tell_workers).run()


class _Rollout:
    """One rollout of ``new`` in place of ``old``."""

    def __init__(
        self,
        options: RolloutOptions,
        run_dir: RunDir,
        state: ServerState,
        client: ManagementClient,
        file: RolloutFile,
        old: ModelVersion,
        new: NewVersion,
        tell: Tell,
        tell_workers: Callable[[Progress], None],
    ) -> None:
        self._options, self._run_dir, self._state, self._client = options, run_dir, state, client
        self._file, self._old, self._new = file, old, new
        self._tell, self._tell_workers = tell, tell_workers
        self._model, self._temporary = options.model, Path(state.tmp)
        self._folder = new_folder(state)
        self._steps: dict[str, Any] = {"bounds": options.bounds.as_dict()}
        self._start = time.monotonic()

    def run(self) -> RolloutResult:
        try:
            self._bring()
            if self._options.shadow:
                self._shadow()
            if self._options.canary:
                self._canary()
            self._switch()
        except BaseException as error:
            self._abort(error)
            raise self._aborted(error) from None
        return self._done()

    def _bring(self) -> None:
        model, version = self._model, self._new.version
        self._tell(f"bring     {model} {version} beside {self._old.version}, from {self._new.path.name}")
        start = time.monotonic()
        self._file.change(
            model,
            running=RunningRollout.own(version),
            folders={**self._file.model(model).folders, version: str(self._folder)},
        )
        workers = max(self._old.wanted, 1)
        # It has a part in the removal of versions: of the old one later, or of this one.
        launch_sidecar(self._run_dir)
        bring_version(
            self._client,
            self._new,
            model=model,
            workers=workers,
            run_dir=self._run_dir,
            folder=self._folder,
            deadline=start + self._options.timeout,
            tell=self._tell_workers,
        )
        seconds = time.monotonic() - start
        self._steps["bring"] = {"workers": workers, "seconds": round(seconds, 2)}
        self._tell(f"bring     {count(workers, 'worker')} ready, golden requests replayed ({seconds:.1f} s)")

    def _shadow(self) -> None:
        options, old, new = self._options, self._old.version, self._new.version
        endpoint = find_endpoint("inference", run_dir=options.run_dir, url=None, token=None)
        with self._watch([old], bodies_of=old) as watch:
            found = compare_on_live_requests(
                watch,
                endpoint,
                self._model,
                old,
                new,
                requests=options.shadow_requests,
                seconds=options.shadow_s,
            )
        self._steps["shadow"] = figures = found.as_dict()
        if found.old.requests < MIN_REQUESTS:
            raise ServingError(
                f"--shadow got {count(found.old.requests, 'request')} of clients in {options.shadow_s:g} s, and needs "
                f"{MIN_REQUESTS}: send it requests (JSON to /predictions/{self._model}), or roll out without it"
            )
        self._tell(f"shadow    {shadow_line(figures)}")
        self._judge("shadow", problems_of(found.old, found.new, options.bounds))

    def _canary(self) -> None:
        options, old, new = self._options, self._old.version, self._new.version
        self._tell(
            f"canary    {options.canary:.2%} of the keys ask {new} for {options.canary_s:g} s "
            f"({self._run_dir.rollout_file})"
        )
        share = CanaryShare(version=new, share=options.canary)
        with self._watch([old, new]) as watch:
            self._file.change(self._model, canary=share)
            try:
                self._look("canary", watch, new, options.canary_s)
            finally:
                self._file.change(self._model, canary=None)
            self._steps["canary"] = figures = figures_of(watch, old, new)
        if figures["new"]["requests"] < MIN_REQUESTS:
            raise ServingError(
                f"the canary got {count(figures['new']['requests'], 'request')} in {options.canary_s:g} s, and needs "
                f"{MIN_REQUESTS}: clients must send it its share (DLRMClient(canary=…), or `dlrm proxy`), or more of it"
            )
        self._tell(f"canary    {live_line(figures)}")

    def _switch(self) -> None:
        model, old, new = self._model, self._old.version, self._new.version
        versions = [old, new]
        if not self._options.watch_s:
            self._client.set_default(model, new)
            self._tell(f"switch    {new} is the default version")
            return
        with self._watch(versions) as watch:
            time.sleep(min(self._options.watch_s, _MAX_BASELINE_S))
            self._client.set_default(model, new)
            self._tell(f"switch    {new} is the default version; watching it for {self._options.watch_s:g} s")
            try:
                self._look("watch", watch, new, self._options.watch_s)
            except BaseException:
                self._client.set_default(model, old)
                self._tell(f"switch    back to {old}")
                raise
            self._steps["watch"] = figures_of(watch, old, new)
        self._tell(f"watch     {live_line(self._steps['watch'])}")

    def _done(self) -> RolloutResult:
        options, old, new = self._options, self._old.version, self._new.version
        kept = KeptVersion(version=old, until=time.time() + options.keep_s)
        earlier = self._file.model(self._model).kept
        others = (msgspec.structs.replace(each, until=0.0) for each in earlier)
        self._file.change(self._model, running=None, kept=(kept, *others))
        seconds = time.monotonic() - self._start
        add_history(
            self._run_dir,
            history_entry(
                self._model, old, new, "done", self._start, archive=str(self._new.path), steps=self._steps
            ),
        )
        # It may have ended since: what is kept would stay for good.
        launch_or_tell(self._run_dir, self._tell)
        return RolloutResult(model=self._model, old=old, new=new, seconds=seconds, steps=self._steps)

    def _abort(self, error: BaseException) -> None:
        """Remove the new version, also when an interrupt comes meanwhile."""
        add_history(
            self._run_dir,
            history_entry(
                self._model,
                self._old.version,
                self._new.version,
                "aborted",
                self._start,
                archive=str(self._new.path),
                steps=self._steps,
                reason=reason_of(error),
            ),
        )
        self._tell(f"abort     removing {self._new.version}")
        with _uninterrupted():
            try:
                remove_version(
                    self._client,
                    self._model,
                    self._new.version,
                    temporary=self._temporary,
                    folder=self._folder,
                )
                folders = self._file.model(self._model).folders
                folders.pop(self._new.version, None)
                self._file.change(self._model, running=None, canary=None, folders=folders)
            except ServingError as problem:
                self._tell(f"abort     {self._new.version} could not be removed: {problem}")

    def _aborted(self, error: BaseException) -> BaseException:
        if isinstance(error, KeyboardInterrupt | ServingError):
            return ServingError(
                f"{self._model} {self._new.version} was not rolled out: {reason_of(error)}\n"
                f"{self._model} {self._old.version} answers as before"
            )
        return error

    def _look(self, step: str, watch: Watch, version: str, seconds: float) -> None:
        """Hold the figures of ``version`` against the bounds for so long, twice a second."""
        end = time.monotonic() + seconds
        told = time.monotonic()
        while time.monotonic() < end:
            time.sleep(min(_LOOK_S, max(end - time.monotonic(), 0.0)))
            old, new = watch.figures(self._old.version), watch.figures(version)
            self._judge(step, problems_of(old, new, self._options.bounds))
            if time.monotonic() - told >= _TELL_EVERY_S and end - time.monotonic() > 1:
                told = time.monotonic()
                self._tell(f"{step:9} {count(new.requests, 'request')}, {end - told:.0f} s to go")

    def _judge(self, step: str, problems: list[str]) -> None:
        if problems:
            self._steps[f"{step}_problems"] = problems
            raise ServingError(f"{step}: {'; '.join(problems)}")

    @contextlib.contextmanager
    def _watch(self, versions: list[str], bodies_of: str | None = None) -> Iterator[Watch]:
        pids = {
            version: [worker.pid for worker in self._client.workers(self._model, version)]
            for version in versions
        }
        with Watch(self._temporary, pids, bodies_of=bodies_of) as watch:
            yield watch


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
