"""FastAPI applications around the eager model, as services of this kind are commonly written."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI

from compare.eager import Columns, EagerModel

__all__ = ["BATCH", "DELAY_S", "Batcher", "batcher_app", "thread_pool_app"]

# The batches of the tuned TorchServe handler that is compared, too.
BATCH = 64
DELAY_S = 0.002

_Request = Annotated[dict[str, Any], Body()]
_Response = dict[
    str, list[float]
]  # the annotation has pydantic write the answer, which is FastAPI's fastest way


def thread_pool_app(model: EagerModel) -> FastAPI:
    """Application with a synchronous endpoint, which FastAPI runs in its thread pool."""
    app = FastAPI()

    @app.post("/predictions/{name}")
    def predict(name: str, request: _Request) -> _Response:
        return {"predictions": model.score(request["inputs"])}

    return app


def batcher_app(model: EagerModel) -> FastAPI:
    """Application with an asynchronous endpoint, whose requests are scored in dynamic batches."""
    app = FastAPI()
    batcher = Batcher(model)

    @app.post("/predictions/{name}")
    async def predict(name: str, request: _Request) -> _Response:
        return {"predictions": await batcher.score(request["inputs"])}

    return app


class Batcher:
    """Dynamic batches of at most `BATCH` requests that came within `DELAY_S` seconds of the first."""

    def __init__(self, model: EagerModel) -> None:
        self._model = model
        self._queue: asyncio.Queue[tuple[Columns, asyncio.Future[list[float]]]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def score(self, columns: Columns) -> list[float]:
        """Probabilities of one request; raises what its batch raised."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((columns, answer))
        return await answer

    async def _run(self) -> None:
        while True:
            batch = await self._gather()
            try:
                scores = await asyncio.to_thread(self._model.score_all, [columns for columns, _ in batch])
            except Exception as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), each in zip(batch, scores, strict=True):
                if not answer.done():
                    answer.set_result(each)

    async def _gather(self) -> list[tuple[Columns, asyncio.Future[list[float]]]]:
        clock = asyncio.get_running_loop().time
        batch = [await self._queue.get()]
        deadline = clock() + DELAY_S
        while len(batch) < BATCH:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), deadline - clock()))
            except asyncio.TimeoutError:
                break
        return batch
