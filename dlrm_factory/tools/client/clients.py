"""`DLRMClient` for threads and scripts, `AsyncDLRMClient` for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypeVar, overload

import httpx

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.client.calls import (
    Call,
    Columns,
    Explanation,
    Float64,
    ModelDescription,
    Names,
    Output,
    RankedCandidate,
    Rows,
    belongs_to,
    finish,
    foreign_answer,
    with_request_id,
)
from dlrm_factory.tools.client.connection import Connection
from dlrm_factory.tools.client.errors import Unauthorized
from dlrm_factory.tools.client.retrying import Attempts, Outcome

__all__ = [
    "AsyncDLRMClient",
    "DLRMClient",
]

T = TypeVar("T")


class DLRMClient(Connection):
    """Asks one model. Threads may share it; connections are kept and reused until it is closed.

    Every method raises a `ClientError` that says whose fault it is. For the arguments see `Connection`. ``key``, of
    each call that scores, says who asks, such as a user's id: all calls of a key go to one version of a `canary`.
    """

    def _open(self, **arguments: Any) -> None:
        self._http = httpx.Client(**arguments)

    @overload
    def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | None = None,
        key: str | None = None,
    ) -> Float64: ...

    @overload
    def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: Names,
        key: str | None = None,
    ) -> dict[str, Float64]: ...

    def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | Names | None = None,
        key: str | None = None,
    ) -> Float64 | dict[str, Float64]:
        """Float64 [B]: a score for each of ``instances`` (rows by name) or of ``inputs`` (columns by name).

        ``outputs``: the name of one of the model's outputs, [B, size] if it is a vector; or a list of names, for a dict
        of an array each. InvalidRequest if the model has several and none is named.
        """
        found: Float64 | dict[str, Float64]
        found = self._answer(self._calls.score(instances, inputs, output, outputs, key))
        return found

    def rank(
        self,
        *,
        context: Mapping[str, Any],
        candidates: Rows | Columns,
        top_k: int | None = None,
        output: Output = "probability",
        outputs: str | Names | None = None,
        rank_by: str | None = None,
        key: str | None = None,
    ) -> tuple[RankedCandidate, ...]:
        """The best ``top_k`` candidates (all without it) for one context, best first.

        ``rank_by``: an expression of outputs and dense features, such as ``click * price``. ``outputs``: given beside.
        """
        return self._answer(self._calls.rank(context, candidates, top_k, output, outputs, rank_by, key))

    def explain(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | None = None,
        key: str | None = None,
    ) -> tuple[Explanation, ...]:
        """Contributions of each feature to the score, one explanation a sample. ``outputs``: the name of one output."""
        return self._answer(self._calls.explain(instances, inputs, output, outputs, key))

    def describe(self) -> ModelDescription:
        """Describe the model as the server knows it. Needs ``management_url``."""
        return self._answer(self._calls.describe())

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> DLRMClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, call: Call[T]) -> T:
        attempts = Attempts(self._retry)
        outcome = self._send(call)
        if (other := call.instead(outcome)) is not None:
            call, outcome = other, self._send(other)
        while (pause := attempts.pause_after(outcome)) is not None:
            time.sleep(pause)
            outcome = self._send(call)
        return finish(call, outcome)

    def _send(self, call: Call[T]) -> Outcome:
        request = with_request_id(call.request)
        try:
            with self._http.stream(**request) as response:
                if not belongs_to(response, request):
                    # Left unread, so that the connection is closed: what comes next on it is not ours either.
                    return foreign_answer(response)
                response.read()
                return response
        except httpx.RequestError as error:
            return error
        except ServingError as error:
            raise Unauthorized(str(error)) from error


class AsyncDLRMClient(Connection):
    """`DLRMClient` for asyncio: the same arguments, answers and errors. Tasks may share it."""

    def _open(self, **arguments: Any) -> None:
        self._http = httpx.AsyncClient(**arguments)

    @overload
    async def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | None = None,
        key: str | None = None,
    ) -> Float64: ...

    @overload
    async def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: Names,
        key: str | None = None,
    ) -> dict[str, Float64]: ...

    async def score(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | Names | None = None,
        key: str | None = None,
    ) -> Float64 | dict[str, Float64]:
        """Float64 [B]: a score for each of ``instances`` (rows by name) or of ``inputs`` (columns by name).

        ``outputs``: the name of one of the model's outputs, [B, size] if it is a vector; or a list of names, for a dict
        of an array each. InvalidRequest if the model has several and none is named.
        """
        found: Float64 | dict[str, Float64]
        found = await self._answer(self._calls.score(instances, inputs, output, outputs, key))
        return found

    async def rank(
        self,
        *,
        context: Mapping[str, Any],
        candidates: Rows | Columns,
        top_k: int | None = None,
        output: Output = "probability",
        outputs: str | Names | None = None,
        rank_by: str | None = None,
        key: str | None = None,
    ) -> tuple[RankedCandidate, ...]:
        """The best ``top_k`` candidates (all without it) for one context, best first.

        ``rank_by``: an expression of outputs and dense features, such as ``click * price``. ``outputs``: given beside.
        """
        return await self._answer(self._calls.rank(context, candidates, top_k, output, outputs, rank_by, key))

    async def explain(
        self,
        *,
        instances: Rows | None = None,
        inputs: Columns | None = None,
        output: Output = "probability",
        outputs: str | None = None,
        key: str | None = None,
    ) -> tuple[Explanation, ...]:
        """Contributions of each feature to the score, one explanation a sample. ``outputs``: the name of one output."""
        return await self._answer(self._calls.explain(instances, inputs, output, outputs, key))

    async def describe(self) -> ModelDescription:
        """Describe the model as the server knows it. Needs ``management_url``."""
        return await self._answer(self._calls.describe())

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncDLRMClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(self, call: Call[T]) -> T:
        attempts = Attempts(self._retry)
        outcome = await self._send(call)
        if (other := call.instead(outcome)) is not None:
            call, outcome = other, await self._send(other)
        while (pause := attempts.pause_after(outcome)) is not None:
            await asyncio.sleep(pause)
            outcome = await self._send(call)
        return finish(call, outcome)

    async def _send(self, call: Call[T]) -> Outcome:
        request = with_request_id(call.request)
        try:
            async with self._http.stream(**request) as response:
                if not belongs_to(response, request):
                    # Left unread, so that the connection is closed: what comes next on it is not ours either.
                    return foreign_answer(response)
                await response.aread()
                return response
        except httpx.RequestError as error:
            return error
        except ServingError as error:
            raise Unauthorized(str(error)) from error
