"""A server of a few lines that answers as a test wants."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

OK = b'HTTP/1.1 200 OK\r\ncontent-length: 21\r\nconnection: keep-alive\r\n\r\n{"predictions":[0.5]}'


@dataclass
class StubServer:
    """Answers every request with ``answer``, after ``delay_s``; pieces of an answer are sent one by one.

    ``paused`` lasts until a moment of `time.monotonic`: until then nothing is answered, as in a long collection.
    """

    answer: Callable[[bytes], list[bytes]] = lambda request: [OK]
    delay_s: float = 0.0
    paused: float = 0.0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, ready: threading.Event) -> None:
        """Serve until `stop`."""
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopped.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                await asyncio.sleep(max(self.delay_s, self.paused - time.monotonic()))
                pieces = self.answer(request)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002 if len(pieces) > 1 else 0)
                if not pieces:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server, ready = StubServer(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(ready)), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield server
    server.stop()
    thread.join(10)
    assert not thread.is_alive()
