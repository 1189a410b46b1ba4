"""Clients as no server wants them: malformed, wrong, slow, gone. Each knows what it must be answered."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys_opt.bench.load import Target
from recsys_opt.server import wire
from recsys_opt.serving.samples import Samples

_ANSWER_S = 300.0
"""For an answer; a machine may be suspended for minutes."""
_BYTE_PAUSE_S = 0.1
CLOSED = "closed"
"""The server has closed the connection without an answer."""
_ADMISSIBLE = frozenset({"answered", "overloaded", "unavailable", "late", "failed"})
"""What becomes of a query that is well-formed."""
_NOTHING = "nothing"
_AFTER_STALL = frozenset({"too_slow", CLOSED, _NOTHING})
"""What any of them may get when this process did not run for a while in the midst of it."""


@dataclass
class Tally:
    """What rude clients were answered."""

    replies: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind of rudeness."""
    unexpected: list[str] = field(default_factory=list)
    after_stall: int = 0
    """Refused as too slow, of those whom a stall of this machine interrupted."""
    admissible: Counter[str] = field(default_factory=Counter)
    """Well-formed queries that were answered or refused, by what became of them."""
    abandoned: int = 0
    """Well-formed queries that the server has had whole, whose clients were gone."""
    cancelled: int = 0
    """Calls given up by their clients: the server may have had them or not."""

    @property
    def sent(self) -> int:
        """All of them."""
        return sum(sum(c.values()) for c in self.replies.values())


class RudeClients:
    """Makes one rude client after another, of all kinds in turn."""

    def __init__(
        self,
        target: Target,
        grpc: str,
        samples: Samples,
        *,
        most_samples: int,
        most_body: int,
        stalls: Callable[[], int],
        seed: int = 0,
    ) -> None:
        self.tally = Tally()
        self._target, self._grpc_address = target, grpc
        self._samples = samples
        self._most_samples, self._most_body = most_samples, most_body
        self._stalls = stalls
        self._random = random.Random(seed)
        self._channel: object | None = None
        kinds: list[tuple[Callable[[], Awaitable[str]], set[str]]] = [
            (self.random_bytes, {"bad_request", "headers_too_large", "too_slow"}),
            (self.changed_bytes, {"bad_request", "unknown_model", "too_large", *_ADMISSIBLE}),
            (self.cut_short, {"bad_request"}),
            (self.wrong_length, {"bad_request", "too_slow"}),
            (self.chunks_of_rubbish, {"bad_request", "too_slow"}),
            (self.far_ids, {"bad_request"}),
            (self.not_a_number, {"bad_request"}),
            (self.empty_query, {"bad_request"}),
            (self.too_many_samples, {"too_large"}),
            (self.huge_body, {"too_large"}),
            (self.wrong_json, {"bad_request"}),
            (self.huge_json, {"too_large"}),
            (self.no_model, {"unknown_model"}),
            (self.no_path, {"not_found", "method_not_allowed"}),
            (self.wrong_token, {"unauthenticated"}),
            (self.foreign_reload, {"unauthenticated"}),
            (self.grpc_rubbish, {"INVALID_ARGUMENT"}),
            (self.grpc_far_ids, {"INVALID_ARGUMENT"}),
            (self.grpc_token, {"UNAUTHENTICATED"}),
            (self.grpc_given_up, {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}),
            (self.slow_headers, {"too_slow"}),
            (self.slow_body, {"too_slow"}),
            (self.never_reads, {CLOSED}),
            (self.gone_in_headers, {"left"}),
            (self.gone_in_body, {"left"}),
            (self.gone_before_answer, {"left"}),
            (self.idle, {"left"}),
        ]
        self._kinds = [(run.__name__, run, allowed) for run, allowed in kinds]

    async def run(self, per_s: float, until: asyncio.Event) -> None:
        """Rude clients, so many a second, until the event; those under way are waited for."""
        import grpc.aio

        tasks: set[asyncio.Task[None]] = set()
        order: list[int] = []
        async with grpc.aio.insecure_channel(self._grpc_address) as self._channel:
            while not until.is_set():
                if not order:
                    order = self._random.sample(range(len(self._kinds)), len(self._kinds))
                task = asyncio.create_task(self._one(*self._kinds[order.pop()]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                if len(tasks) > 200:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(self._random.expovariate(per_s))
            while tasks:
                await asyncio.wait(list(tasks))

    async def _one(self, name: str, run: Callable[[], Awaitable[str]], allowed: set[str]) -> None:
        stalls = self._stalls()
        try:
            async with asyncio.timeout(_ANSWER_S):
                reply = await run()
        except TimeoutError:
            reply = _NOTHING
        except (ConnectionError, asyncio.IncompleteReadError):
            reply = CLOSED
        self.tally.replies.setdefault(name, Counter())[reply] += 1
        if reply in allowed:
            return
        await asyncio.sleep(2.0)  # by then a stall is known of
        if reply in _AFTER_STALL and self._stalls() > stalls:
            self.tally.after_stall += 1
        else:
            self.tally.unexpected.append(f"{name}: {reply}; it must be {' or '.join(sorted(allowed))}")

    # Bytes that are no request, or no query.

    async def random_bytes(self) -> str:
        """Of any number."""
        return await self._ask(self._random.randbytes(self._random.randrange(1, 4000)) + b"\r\n\r\n")

    async def changed_bytes(self) -> str:
        """A query with some bytes changed; it may be one still."""
        body = bytearray(self._query())
        for _ in range(self._random.randrange(1, 5)):
            body[self._random.randrange(len(body))] = self._random.randrange(256)
        return self._counted(await self._ask(self._post(bytes(body))))

    async def cut_short(self) -> str:
        """A query without its end, as long as its headers say."""
        body = self._query()
        return await self._ask(self._post(body[: self._random.randrange(len(body))]))

    async def wrong_length(self) -> str:
        """Headers that promise more, or less, than comes."""
        body = self._query()
        return await self._ask(self._post(body, length=len(body) + self._random.choice((-9, 9, 1000))))

    async def chunks_of_rubbish(self) -> str:
        """A chunked body whose chunks are none."""
        head = self._head("POST", "/v1/predict", "transfer-encoding: chunked")
        return await self._ask(head + b"\r\n" + self._random.randbytes(300) + b"\r\n0\r\n\r\n")

    async def far_ids(self) -> str:
        """An id outside its table."""
        dense, ids = self._arrays()
        ids = ids.astype(np.int64)
        row, column = self._random.randrange(len(ids)), self._random.randrange(ids.shape[1])
        ids[row, column] = self._random.choice((-1, -(2**63), 2**31, 2**63 - 1))
        return await self._ask(self._post(wire.encode_query(dense, ids)))

    async def not_a_number(self) -> str:
        """NaN or infinity among the dense columns."""
        dense, ids = self._arrays()
        dense[-1, self._random.randrange(dense.shape[1])] = self._random.choice((np.nan, np.inf, -np.inf))
        return await self._ask(self._post(wire.encode_query(dense, ids)))

    async def empty_query(self) -> str:
        """No samples."""
        dense, ids = self._arrays()
        return await self._ask(self._post(wire.encode_query(dense[:0], ids[:, :0])))

    async def too_many_samples(self) -> str:
        """More than one query may have."""
        dense, ids = self._samples.request(self._most_samples + 1, 0)
        return await self._ask(self._post(wire.encode_query(dense, ids)))

    async def huge_body(self) -> str:
        """Headers that announce more bytes than are taken; all of 64 kB of them come."""
        return await self._ask(self._post(bytes(65536), length=self._most_body + 1))

    async def wrong_json(self) -> str:
        """JSON that is none, or no query."""
        text = self._random.choice(
            (
                '{"dense": [[NaN]], "ids": [[0]]}',
                "[" * 5000,
                '{"dense": 1}',
                '{"dense": [], "ids": []}',
                '{"dense": [[1]], "ids": [[9223372036854775808]]}',
                "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
            )
        )
        return await self._ask(self._post(text.encode("latin-1"), kind="application/json"))

    async def huge_json(self) -> str:
        """JSON of more samples than a query may have."""
        text = json.dumps({"dense": [[0]] * (self._most_samples + 1), "ids": []})
        return await self._ask(self._post(text.encode(), kind="application/json"))

    async def no_model(self) -> str:
        """A query for a model that is not there."""
        return await self._ask(self._post(wire.encode_query(*self._arrays(), model="another")))

    async def no_path(self) -> str:
        """Paths and methods that the server has not."""
        method, path = self._random.choice(
            (("GET", "/"), ("DELETE", "/v1/predict"), ("GET", "/../etc/passwd"))
        )
        return await self._ask(self._head(method, path) + b"\r\n")

    async def wrong_token(self) -> str:
        """Another token, or none."""
        return await self._ask(self._post(self._query(), token=self._random.choice(("", "x" * 40, "é" * 9))))

    async def foreign_reload(self) -> str:
        """Who would have the models reloaded without the token."""
        return await self._ask(self._head("POST", "/v1/reload", token="x" * 40) + b"\r\n")

    # Over gRPC.

    async def grpc_rubbish(self) -> str:
        """Bytes that are no message."""
        return await self._call(b"\xff" + self._random.randbytes(self._random.randrange(400)))

    async def grpc_far_ids(self) -> str:
        """An id outside its table."""
        dense, ids = self._arrays()
        ids[0, 0] = -1
        return await self._call(_message(wire.encode_query(dense, ids)))

    async def grpc_token(self) -> str:
        """Another token."""
        return await self._call(_message(self._query()), token="x" * 40)

    async def grpc_given_up(self) -> str:
        """A call whose client gives it up, a moment after it was sent or before."""
        self.tally.cancelled += 1
        return await self._call(_message(self._query()), timeout_s=self._random.choice((0.001, 0.003, 0.01)))

    # Slow ones.

    async def slow_headers(self) -> str:
        """Headers, a byte at a time."""
        return await self._ask(self._post(self._query()), byte_pause_s=_BYTE_PAUSE_S)

    async def slow_body(self) -> str:
        """A body, a byte at a time."""
        query = self._query()
        return await self._ask(self._post(b"", length=len(query)), query, byte_pause_s=_BYTE_PAUSE_S)

    async def never_reads(self) -> str:
        """Thousands of requests, of whose answers not a byte is read."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET) as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(connection, (self._target.host, self._target.port))
            while True:  # until the server takes it no more, and ends it
                await loop.sock_sendall(connection, 20 * b"GET /metrics HTTP/1.1\r\n\r\n")
                await asyncio.sleep(0.02)

    # Those that go away.

    async def gone_in_headers(self) -> str:
        """Half of the headers."""
        head = self._post(self._query())[:-1]
        return await self._leave(head[: self._random.randrange(1, 60)])

    async def gone_in_body(self) -> str:
        """Half of a query."""
        return await self._leave(self._post(self._query())[:-4])

    async def gone_before_answer(self) -> str:
        """A whole query, whose answer nobody waits for."""
        self.tally.abandoned += 1
        return await self._leave(self._post(self._query()))

    async def idle(self) -> str:
        """A connection without a request."""
        return await self._leave(b"")

    # What they are made of.

    def _arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        return self._samples.request(
            self._random.randrange(1, 33), self._random.randrange(self._samples.rows)
        )

    def _query(self) -> bytes:
        return wire.encode_query(*self._arrays())

    def _head(self, method: str, path: str, *headers: str, token: str | None = None) -> bytes:
        token = self._target.token if token is None else token
        lines = [f"{method} {path} HTTP/1.1", f"authorization: Bearer {token}", *headers]
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _post(
        self,
        body: bytes,
        *,
        length: int | None = None,
        kind: str = wire.CONTENT_TYPE,
        token: str | None = None,
    ) -> bytes:
        headers = [f"content-length: {len(body) if length is None else length}", f"content-type: {kind}"]
        return self._head("POST", "/v1/predict", *headers, token=token) + b"\r\n" + body

    async def _ask(self, *parts: bytes, byte_pause_s: float = 0.0) -> str:
        """The code of the answer; the last part goes out byte by byte where there is a pause."""
        reader, writer = await asyncio.open_connection(self._target.host, self._target.port)
        answer = asyncio.create_task(_code_of_answer(reader))
        try:
            for part in parts[:-1] if byte_pause_s else parts:
                writer.write(part)
            for byte in parts[-1] if byte_pause_s else b"":
                if answer.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(byte_pause_s)
            return await answer
        finally:
            answer.cancel()
            writer.close()

    async def _leave(self, sent: bytes) -> str:
        _, writer = await asyncio.open_connection(self._target.host, self._target.port)
        writer.write(sent)
        await asyncio.sleep(self._random.choice((0.0, 0.001, 0.01)))
        writer.close()
        await writer.wait_closed()
        return "left"

    async def _call(self, message: bytes, *, token: str | None = None, timeout_s: float = _ANSWER_S) -> str:
        import grpc.aio

        from recsys_opt.server.grpc_messages import METHOD

        assert isinstance(self._channel, grpc.aio.Channel)
        token = self._target.token if token is None else token
        try:
            call = self._channel.unary_unary(METHOD)
            await call(message, timeout=timeout_s, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    def _counted(self, code: str) -> str:
        if code in _ADMISSIBLE:
            self.tally.admissible[code] += 1
        return code


async def _code_of_answer(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
    body = await reader.readexactly(int(length))
    if head.startswith("HTTP/1.1 200 "):
        return "answered"
    return str(json.loads(body)["error"]["code"])


def _message(query: bytes) -> bytes:
    from recsys_opt.server.grpc_messages import PredictRequest

    message: bytes = PredictRequest(query=query).SerializeToString()
    return message
