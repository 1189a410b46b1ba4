"""The HTTP protocol object on bytes of any kind, in pieces of any size, with answers in any order."""

import asyncio
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

httptools = pytest.importorskip("httptools")

from recsys_opt.server.http_protocol import HttpConnection, HttpServer  # noqa: E402
from recsys_opt.server.http_request import Request  # noqa: E402
from recsys_opt.server.refusal import RefusalError  # noqa: E402
from recsys_opt.server.settings import Limits  # noqa: E402

LIMITS = Limits(max_body_bytes=4000, max_header_bytes=2000, write_timeout_s=7.0, header_timeout_s=3.0)


class Echo:
    """Answers with what it was asked; later, where it is told so."""

    def __init__(self, later: bool) -> None:
        self.later = later
        self.waiting: list[Request] = []
        self.handled = 0

    def begin(self, request: Request) -> None:
        if request.path.startswith("/no"):
            raise RefusalError("not_found", f"there is no {request.path}")

    def handle(self, request: Request) -> None:
        self.handled += 1
        if request.path.startswith("/late"):
            raise RefusalError("overloaded", "later", retry_after_s=1.0)
        if request.path.startswith("/fault"):
            raise ZeroDivisionError
        self.waiting.append(request)
        if not self.later:
            self.answer(0)

    def answer(self, number: int) -> None:
        request = self.waiting.pop(number)
        request.answer(200, f"{request.method} {request.path} ".encode() + bytes(request.body), "text/plain")


class Wire(asyncio.Transport):
    """The server's side of a connection whose client reads, or does not."""

    def __init__(self, connection: HttpConnection, most_unread: float = math.inf) -> None:
        super().__init__()
        self._connection, self._most = connection, most_unread
        self.written = bytearray()
        self.reading, self.closed, self.ended, self.blocked = True, False, False, False

    def write(self, data: bytes) -> None:
        assert not self.ended
        if not self.closed:
            self.written += data
            if len(self.written) > self._most and not self.blocked:
                self.blocked = True
                self._connection.pause_writing()

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True


@dataclass
class Answers:
    """What a client makes of the bytes, by httptools' parser of responses."""

    found: list[tuple[int, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.found.append((self.parser.get_status_code(), bytes(self.body)))
        self.body.clear()

    @classmethod
    def of(cls, data: bytes) -> list[tuple[int, bytes]]:
        answers = cls()
        answers.parser = httptools.HttpResponseParser(answers)
        answers.parser.feed_data(data)
        assert not answers.body, "an answer is not whole"
        return answers.found


def connect(later: bool = False, most_unread: float = math.inf) -> tuple[HttpConnection, Wire, Echo]:
    loop = asyncio.new_event_loop()
    loop.close()  # only listening needs it
    echo = Echo(later)
    connection = HttpConnection(HttpServer(echo, LIMITS, loop))
    transport = Wire(connection, most_unread)
    connection.connection_made(transport)
    return connection, transport, echo


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = [0, *sorted({c % (len(data) + 1) for c in cuts}), len(data)]
    return (data[a:b] for a, b in itertools.pairwise(at) if b > a)


PATHS = ("/", "/a/b", "/no", "/late", "/fault")


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[int, bytes]]:
    """A good request, and how it must be answered."""
    method = draw(st.sampled_from(["GET", "POST", "PUT"]))
    path = draw(st.sampled_from(["/", "/a/b", "/late", "/fault"]))
    body = draw(st.binary(max_size=200)) if method != "GET" else b""
    lines = [f"{method} {path}?q=1 HTTP/1.1", "Host: x"]
    if body and draw(st.booleans()):
        cut = draw(st.integers(1, len(body)))
        chunks = [c for c in (body[:cut], body[cut:]) if c]
        lines.append("Transfer-Encoding: chunked")
        sent = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    else:
        lines.append(f"Content-Length: {len(body)}")
        sent = body
    told = {"/late": (429, b""), "/fault": (500, b"")}.get(path, (200, f"{method} {path} ".encode() + body))
    return "\r\n".join([*lines, "", ""]).encode() + sent, told


@settings(max_examples=150)
@given(st.lists(requests(), min_size=1, max_size=12), st.lists(st.integers(0, 10**6), max_size=30), st.data())
def test_requests_in_any_pieces_are_answered_in_their_order(asked, cuts, data):
    connection, transport, echo = connect(later=data.draw(st.booleans()))
    left = list(pieces(b"".join(sent for sent, _ in asked), cuts))
    while left or echo.waiting:
        if left and transport.reading and (not echo.waiting or data.draw(st.booleans())):
            connection.data_received(left.pop(0))
        else:  # in any order
            assert echo.waiting, "the server neither reads nor has anything to answer"
            echo.answer(data.draw(st.integers(0, len(echo.waiting) - 1)))
    found = Answers.of(bytes(transport.written))
    assert [status for status, _ in found] == [status for _, (status, _) in asked]
    for (status, body), (_, (_, told)) in zip(found, asked, strict=True):
        if status == 200:
            assert body == told
    assert not transport.closed
    assert connection.expires > time.monotonic() + LIMITS.header_timeout_s  # it idles


REAL = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello"
DAMAGED = st.tuples(
    st.lists(st.sampled_from([REAL, b"GET /no HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]), max_size=5),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), max_size=5),
).map(lambda made: damage(b"".join(made[0]), made[1]))


def damage(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for at, put in changes:
        at %= len(data) + 1
        data = data[:at] + put + data[at + len(put) // 2 + 1 :]
    return data


@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=3000), DAMAGED), st.lists(st.integers(0, 10**6), max_size=20))
def test_bytes_of_any_kind_are_answered_whole_or_not_at_all(sent: bytes, cuts: list[int]):
    connection, transport, echo = connect()
    for piece in pieces(sent, cuts):
        if transport.closed:
            break
        was_over, before = transport.ended, len(transport.written)
        connection.data_received(piece)
        assert not (was_over and len(transport.written) > before)
    answers = Answers.of(bytes(transport.written).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    assert len(answers) <= echo.handled + 1
    assert {status for status, _ in answers} <= {200, 400, 404, 413, 429, 431, 500}
    # In the end time closes it, whatever it waits for.
    assert connection.expires < math.inf or transport.closed
    connection.expire()
    connection.connection_lost(None)
    assert connection not in connection._server.connections
    assert connection._server.reading_bytes == 0


GET = b"GET /a HTTP/1.1\r\n\r\n"


def test_what_is_sent_at_once_is_limited():
    connection, transport, echo = connect()
    connection.data_received(GET * 5000)
    answers = Answers.of(bytes(transport.written))
    assert [status for status, _ in answers] == [200] * 32 + [429]
    assert b"more than 32 requests came at once" in answers[-1][1]
    assert echo.handled == 32
    assert transport.ended
    connection.data_received(GET)  # is thrown away
    assert echo.handled == 32
    assert connection.expires < time.monotonic() + 5


def test_who_reads_no_answers_has_no_more_time_by_asking_on():
    connection, transport, _ = connect(most_unread=200)
    connection.data_received(GET * 20)
    assert transport.blocked
    assert not transport.reading
    assert connection.expires <= time.monotonic() + LIMITS.write_timeout_s
    connection.expire()
    assert transport.closed


def test_who_reads_again_has_all_answers():
    connection, transport, _ = connect(most_unread=200)
    connection.data_received(GET * 20)
    while transport.blocked:
        transport.blocked, transport._most = False, 2 * len(transport.written)
        connection.resume_writing()
    assert Answers.of(bytes(transport.written)) == [(200, b"GET /a ")] * 20
    assert transport.reading
    assert connection.expires > time.monotonic() + LIMITS.write_timeout_s


def test_bodies_that_are_being_read_are_limited_together():
    loop = asyncio.new_event_loop()
    loop.close()
    server = HttpServer(Echo(False), replace(LIMITS, max_reading_bytes=5000), loop)
    pairs = []
    for _ in range(3):
        connection = HttpConnection(server)
        transport = Wire(connection)
        connection.connection_made(transport)
        connection.data_received(b"POST /a HTTP/1.1\r\nContent-Length: 3000\r\n\r\n")
        pairs.append((connection, transport))
    (first, one), (second, two), (third, three) = pairs
    first.data_received(b"x" * 2900)
    second.data_received(b"x" * 2500)
    ((status, said),) = Answers.of(bytes(two.written))
    assert status == 503
    assert b"5,000 bytes are being read already" in said
    assert server.reading_bytes == 2900
    first.data_received(b"x" * 100)
    assert Answers.of(bytes(one.written)) == [(200, b"POST /a " + b"x" * 3000)]
    assert server.reading_bytes == 0
    third.data_received(b"x" * 2000)
    assert server.reading_bytes == 2000
    third.connection_lost(None)
    second.connection_lost(None)
    assert server.reading_bytes == 0
    assert not three.written


def test_a_client_that_goes_away_is_told_once_for_each_query_that_waits():
    connection, _, echo = connect(later=True)
    connection.data_received(GET)
    lost: list[int] = []
    echo.waiting[0].on_lost = lambda: lost.append(0)
    connection.connection_lost(None)
    connection.connection_lost(None)
    assert lost == [0]
    assert echo.waiting[0].answered


def test_a_suspended_server_gives_its_clients_the_time_it_lost(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = HttpServer(Echo(False), LIMITS, loop)
        await server.listen("127.0.0.1", 0)
        connection = HttpConnection(server)
        transport = Wire(connection)
        connection.connection_made(transport)
        expires = connection.expires
        suspended = time.monotonic() + 100
        monkeypatch.setattr(time, "monotonic", lambda: suspended)
        server._look()  # 100 s late: what the client sent meanwhile is not read yet
        assert not transport.closed
        assert connection.expires > expires + 99
        monkeypatch.setattr(time, "monotonic", lambda: suspended + 0.25)
        connection._reads_by = suspended
        server._look()
        assert transport.closed
        monkeypatch.undo()
        connection.connection_lost(None)
        await server.close(1.0)

    asyncio.run(main())
