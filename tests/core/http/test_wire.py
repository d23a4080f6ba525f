"""A plain way to a server next door: what it sends is read whole, or told to be broken."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tuneloop.core.http.wire import Broken, HttpRefused, Wire

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


class Server:
    """Answers the requests of each connection with given bytes; `None` closes it."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers, self.asked, self.connections, self.left = list(answers), [], 0, asyncio.Event()  # type: ignore[var-annotated]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
                self.asked.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer or answer.endswith(b"~"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


def run(
    server: Callable[[], Server],
    work: Callable[[Wire, Server], Awaitable[None]],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> None:
    async def main() -> None:
        made = server()
        listening = await asyncio.start_server(made.handle, "127.0.0.1", 0)
        wire = Wire(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "the-key")
        try:
            await asyncio.wait_for(work(wire, made), 20)
        finally:
            await wire.close()
            listening.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


async def read(wire: Wire) -> list[bytes]:
    return [event async for event in wire.events("/completion", b"{}")]


def test_a_connection_is_used_again_and_the_key_is_sent() -> None:
    async def work(wire: Wire, server: Server) -> None:
        assert await wire.post("/tokenize", b'{"a": 1}') == b"hello"
        assert await wire.get("/health") == b""
        assert server.connections == 1
        assert server.asked[0].endswith(b'\r\n\r\n{"a": 1}') and b"Authorization: Bearer the-key\r\n" in server.asked[0]
        assert server.asked[1].startswith(b"GET /health HTTP/1.1\r\n")

    run(lambda: Server(OK + b"Content-Length: 5\r\n\r\nhello", OK + b"content-length: 0\r\n\r\n"), work)


def test_events_come_whole_however_they_are_cut() -> None:
    async def work(wire: Wire, server: Server) -> None:
        assert await read(wire) == [b'{"n": 1}', b'{"n": 2}', b"[DONE]"]
        assert await read(wire) == [b"again"]
        assert server.connections == 1

    first = chunk(b'data: {"n"') + chunk(b": 1}\n\nda") + chunk(b'ta: {"n": 2}\r\n\r\n: nothing\n\ndata: [DONE]\n\n')
    run(lambda: Server(CHUNKED + first + b"0\r\n\r\n", CHUNKED + chunk(b"data: again\n\n") + b"0\r\n\r\n"), work)


def test_what_is_refused_tells_why() -> None:
    async def work(wire: Wire, server: Server) -> None:
        for ask in (wire.post("/x", b""), read(wire)):
            with pytest.raises(HttpRefused) as error:
                await ask
            assert (error.value.status, error.value.body, error.value.retry_after) == (429, b"no", 7)
        assert server.connections == 1

    run(lambda: Server(*(b"HTTP/1.1 429 Bad\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno",) * 2), work)


def test_a_connection_that_was_closed_while_it_rested_is_opened_anew() -> None:
    async def work(wire: Wire, server: Server) -> None:
        answers = [await wire.post("/x", b"") for _ in range(3)]
        assert answers == [b"1", b"2", b"3"] and server.connections == 2 and len(server.asked) == 4

    item, two, three = (OK + f"Content-Length: 1\r\n\r\n{i}".encode() for i in (1, 2, 3))
    run(lambda: Server(item, two, None, three), work)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"what?\r\n\r\n~",
        CHUNKED + chunk(b"data: 1\n\n") + b"~",
        CHUNKED + b"zz\r\n~",
        OK + b"Content-Length: 100\r\n\r\nshort~",
        b"HTTP/1.1 abc\r\n\r\n~",
    ],
)
def test_what_breaks_off_is_told(answer: bytes | None) -> None:
    async def work(wire: Wire, server: Server) -> None:
        with pytest.raises(Broken):
            await read(wire)

    run(lambda: Server(answer), work)


def test_nobody_listens() -> None:
    async def work(wire: Wire, server: Server) -> None:
        nobody = Wire("http://127.0.0.1:9")
        with pytest.raises(Broken):
            await nobody.get("/health")
        await nobody.close()
        with pytest.raises(Broken):
            await nobody.get("/health")

    run(Server, work)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def work(wire: Wire, server: Server) -> None:
        assert await wire.post("/x", b"") == b"all of it~"
        assert await wire.post("/x", b"") == b"closed"
        assert await wire.get("/x") == b"new"
        assert server.connections == 3

    closed = OK + b"Connection: close\r\nContent-Length: 6\r\n\r\nclosed"
    run(lambda: Server(OK + b"\r\nall of it~", closed, OK + b"Content-Length: 3\r\n\r\nnew"), work)


def test_the_server_sees_when_a_reader_leaves() -> None:
    async def work(wire: Wire, server: Server) -> None:
        async with aclosing(wire.events("/completion", b"{}")) as events:
            assert await anext(events) == b"1"
        await asyncio.wait_for(server.left.wait(), 5)
        task = asyncio.ensure_future(read(wire))
        await asyncio.sleep(0.05)
        server.left.clear()
        task.cancel()
        await asyncio.wait_for(server.left.wait(), 5)

    run(lambda: Server(*(CHUNKED + chunk(b"data: 1\n\n"),) * 2), work)


@pytest.mark.parametrize("excepted", ["", "server.example"])
def test_the_proxy_of_the_environment_is_used_where_it_may_be(excepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(wire: Wire, server: Server) -> None:
        monkeypatch.setenv("http_proxy", wire.address)
        monkeypatch.setenv("no_proxy", excepted)
        monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")  # no one speaks to such a one here
        far = Wire("http://server.example:80/v1", "the-key", proxies=True)
        try:
            if excepted:
                with pytest.raises(Broken):  # it is asked by itself, and there is none of that name
                    await far.get("/models")
                assert not server.asked
            else:
                assert await far.get("/models") == b"hi"
                assert server.asked[0].startswith(b"GET http://server.example/v1/models HTTP/1.1")
        finally:
            await far.close()

    run(lambda: Server(OK + b"Content-Length: 2\r\n\r\nhi"), work)


def test_in_uvloop_a_large_answer_waits_for_its_reader() -> None:
    uvloop = pytest.importorskip("uvloop")
    size = 8 << 20

    async def work(wire: Wire, server: Server) -> None:
        body = await wire.post("/completion", b"{}")
        assert len(body) == size and set(body) == {ord("x")}
        assert await read(wire) == [b"1"] and server.connections == 1

    large = OK + f"Content-Length: {size}\r\n\r\n".encode() + b"x" * size
    run(lambda: Server(large, CHUNKED + chunk(b"data: 1\n\n") + chunk(b"")), work, uvloop.new_event_loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_with_tls_is_reached_through_a_tunnel(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_loop = asyncio.new_event_loop if loop == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    name, certificate = "server.example", self_signed("server.example", tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[bytes] = []

    async def work(wire: Wire, server: Server) -> None:
        far = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context)

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            if len(asked) > 2:
                writer.write(b"HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n")
                return
            port = far.sockets[0].getsockname()[1]
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.gather(piped(reader, other_writer), piped(other_reader, writer))

        near = await asyncio.start_server(proxy, "127.0.0.1", 0)
        monkeypatch.setenv("https_proxy", f"http://me:p%40ss@127.0.0.1:{near.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        through = Wire(f"https://{name}/v1", "the-key", proxies=True)
        assert [await through.get("/models"), await through.post("/x", b"{}")] == [b"hi", b"ho"]
        await through.close()
        for far_name in ("other.example", name):  # whose certificate this is not; then the proxy opens no tunnel
            refused = Wire(f"https://{far_name}/v1", "the-key", proxies=True)
            with pytest.raises(Broken) as caught:
                await refused.get("/models")
            assert caught.value.kind == "unreachable"
            await refused.close()

    run(lambda: Server(*(OK + b"Content-Length: 2\r\n\r\n" + text for text in (b"hi", b"ho"))), work, new_loop)
    login = b64encode(b"me:p@ss")
    assert asked[0].startswith(b"CONNECT server.example:443 HTTP/1.1\r\n") and len(asked) == 3
    assert b"Proxy-Authorization: Basic " + login in asked[0] and b"the-key" not in b"".join(asked)


async def piped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


def self_signed(name: str, folder: Path) -> Path:
    """A file with a key and a certificate of its own for a name."""
    now, key = datetime.now(UTC), ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    (folder / "server.pem").write_bytes(text + builder.sign(key, hashes.SHA256()).public_bytes(pem))
    return folder / "server.pem"


def test_a_key_with_a_line_break_is_not_sent() -> None:
    async def main() -> None:
        with pytest.raises(Broken) as caught:
            await Wire("http://127.0.0.1:9", "a\r\nX-Other: b").get("/")
        assert caught.value.kind == "unsendable"

    asyncio.run(main())


def test_bytes_behind_an_answer_are_no_other_answer() -> None:
    async def work(wire: Wire, server: Server) -> None:
        assert await wire.get("/first") == b"hello"
        assert await wire.get("/second") == b"mine"
        await asyncio.sleep(0.05)  # what comes while nothing is expected
        assert await wire.get("/third") == b"right"
        assert server.connections >= 2

    first = OK + b"Content-Length: 5\r\n\r\nhello"
    poison = OK + b"Content-Length: 6\r\n\r\npoison"
    answers = first + poison, OK + b"Content-Length: 4\r\n\r\nmine", OK + b"Content-Length: 5\r\n\r\nright"
    run(lambda: Server(*answers), work)


@pytest.mark.parametrize("head", [b"X: " + b"a" * 200_000, b"\r\n".join(b"X-%d: a" % i for i in range(2_000))])
def test_a_head_without_an_end_is_broken_off(head: bytes) -> None:
    async def work(wire: Wire, server: Server) -> None:
        with pytest.raises(Broken):
            await wire.get("/health")

    run(lambda: Server(OK + head + b"\r\nContent-Length: 0\r\n\r\n"), work)
