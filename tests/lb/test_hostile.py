"""Clients and back ends that do not keep to the rules; `World` asserts after each that no task, connection or file is left."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from .bench import World, body_of, read_request, read_response, reset_now, rest_of, run, says, sizes, until

HOST = b"Host: x\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A back end that must not be asked to the end."""
    data = await reader.read()
    assert b"EVIL" not in data


# -- requests ------------------------------------------------------------------------------------------

REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", 400, b"Missing mandatory Host"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, b"multiple Host"),
    (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, b"Host is no host"),
    (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, b"Host is no host"),
    (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"GET /\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"illegal request line"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400, b"LF alone"),
    (b"GET / HTTP/1.1\nHost: x\n\n", 400, b"LF alone"),
    (b"\n", 400, b"LF alone"),
    (b"\r\n\r\nGET / HTTP/1.1\r\n", 400, b"no request line"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, b"bare CR"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400, b"NUL"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, b"obsolete line folding"),
    (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400, b"obsolete line folding"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400, b"illegal header line"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400, b"illegal header line"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400, b"illegal header line"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x0bb\r\n\r\n", 400, b"illegal header line"),
    (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, b"HTTP/2.0 is not spoken"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, b"HTTP/2.0"),
    (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505, b"HTTP/1.2"),
    (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"no path"),
    (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"no path"),
    (b"GET http:///a HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"authority is no host"),
    (b"GET http://u@x/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"authority is no host"),
    (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"for OPTIONS only"),
    (b"CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n", 400, b"a host and a port"),
    (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 4\r\n\r\nEVIL", 400, b"CONNECT with a body"),
    (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nEVIL", 400, b"conflicting Content-Length"),
    (POST + b"Content-Length: 5, 6\r\n\r\nEVIL", 400, b"conflicting Content-Length"),
    (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nEVIL", 400, b"both Content-Length and Transfer-Encoding"),
    (POST + b"Transfer-Encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\nEVIL", 400, b"both Content-Length and Transfer-Encoding"),
    (POST + b"Content-Length: +5\r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Content-Length: -5\r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Content-Length: 0x5\r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Content-Length: 5_0\r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Content-Length: \r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nEVIL", 400, b"bad Content-Length"),
    (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\nEVIL", 501, b"Transfer-Encoding"),
    (POST + b"Transfer-Encoding: identity\r\n\r\nEVIL", 501, b"Transfer-Encoding"),
    (POST + b"Transfer-Encoding: xchunked\r\n\r\nEVIL", 501, b"Transfer-Encoding"),
    (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\nEVIL", 501, b"Transfer-Encoding"),
    (POST + b"Transfer-Encoding : chunked\r\n\r\nEVIL", 400, b"illegal header line"),
    (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\nEVIL", 400, b"illegal header line"),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nEVIL", 400, b"Transfer-Encoding in HTTP/1.0"),
    (POST + b"Connection: Content-Length\r\nContent-Length: 4\r\n\r\nEVIL", 400, b"Connection names content-length"),
    (POST + b"Connection: close, host\r\nContent-Length: 4\r\n\r\nEVIL", 400, b"Connection names host"),
]


@pytest.mark.parametrize(("data", "status", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_ambiguous_is_refused_and_nobody_sees_it(data, status, said):
    async def test() -> None:
        async with World(nobody) as world:
            got = await world.talk(data)
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nConnection: close" in head
            assert said in body, body
            assert world.backends[0].connections == 0 and sum(world.proxy.refused.values()) == 1

    run(test)


BODIES = [
    b"x\r\n", b"-1\r\n", b"0x5\r\nEVIL", b"\r\n", b" 5\r\nEVIL", b"5\n12345", b"5;\x00\r\n12345\r\n0\r\n\r\n", b"5;a\rb\r\n12345\r\n",
    b"5\r\n123456\r\n0\r\n\r\n", b"5\r\n12345\n0\r\n\r\n", b"5\r\n12345\r\r0\r\n\r\n", b"5\r\n12345XX0\r\n\r\n",
    b"f" * 16 + b"\r\nEVIL", b"5" + b" " * 600 + b"\r\n12345", b"0;" + b"x" * 600 + b"\r\n\r\n",
    b"0\r\n\n", b"0\r\nA: b\n\r\n", b"0\r\nA: b\r\n c: d\r\n\r\n", b"0\r\nA\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\r\nA: b\0\r\n\r\n",
    b"0\r\n" + b"A: b\r\n" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_chunks_that_are_none(body):
    async def test() -> None:
        async with World(nobody) as world:
            got = await world.talk(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
            assert got.startswith(b"HTTP/1.1 400 "), got
            assert world.proxy.refused == {"malformed": 1}
            # The back end has seen the head, and never the end.
            assert world.proxy.backends.members[0].requests == 1 and not world.proxy.backends.members[0].pool

    run(test)


def test_chunks_reach_the_back_end_in_a_framing_of_ours():
    async def test() -> None:
        got = asyncio.get_running_loop().create_future()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            got.set_result(await reader.readuntil(b"0\r\nX-Sum: 1\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read()

        async with World(handler) as world:
            reader, writer = await world.connect()
            writer.write(POST + b"Transfer-Encoding: Chunked\r\n\r\n00005;ext=\"a\"  \r\nhello\r\nA \r\n0123456789\r\n")
            writer.write(b"000\r\nX-Sum: 1\r\nContent-Length: 4\r\nHost: evil\r\n\r\n")
            assert (await read_response(reader))[0] == 200
            assert await got == b"5\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"

    run(test)


@pytest.mark.parametrize("endless", [b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50_000, b"GET / HTTP/1.1\r\n" + b"a" * 200_000])
def test_a_head_that_is_too_long(endless):
    async def test() -> None:
        async with World(nobody, limits={"header_bytes": 8192}) as world:
            got = await world.talk(endless)
            assert got.startswith(b"HTTP/1.1 431 ") and got.endswith(b"the head has more than 8192 bytes\n")
            assert world.proxy.refused == {"large_head": 1}

    run(test)


def test_a_head_of_just_the_limit():
    async def test() -> None:
        async with World(sizes(), limits={"header_bytes": 1000}) as world:
            for more, status in ((0, 200), (1, 431)):
                head = b"GET /5 HTTP/1.1\r\n" + HOST + b"Connection: close\r\nA: "
                head += b"b" * (1000 + more - len(head) - 4) + b"\r\n\r\n"
                assert len(head) == 1000 + more
                assert (await world.talk(head)).startswith(b"HTTP/1.1 %d" % status)

    run(test)


def test_slow_heads_and_bodies():
    async def test() -> None:
        async with World(nobody, timeouts={"header": 0.3, "idle": 0.3, "keep_alive": 0.5}) as world:

            async def drip() -> bytes:
                reader, writer = await world.connect()
                for letter in b"GET / HTTP/1.1\r\nHost: abcdefghijklmnopqrstuvwxyz":
                    writer.write(bytes([letter]))
                    await asyncio.sleep(0.02)
                return await rest_of(reader)

            silent, dripping, half, nothing = await asyncio.gather(
                world.talk(b"GET / HT"), drip(), world.talk(POST + b"Content-Length: 100\r\n\r\nabc"), world.talk(b"")
            )
            assert silent.startswith(b"HTTP/1.1 408 ") and silent.endswith(b"the head was not complete after 0.3 s\n")
            assert dripping.startswith(b"HTTP/1.1 408 ")
            assert half.startswith(b"HTTP/1.1 408 ") and half.endswith(b"the body did not come\n")
            assert nothing == b""
            assert world.proxy.refused == {"slow_head": 2, "slow_body": 1}

    run(test)


def test_clients_that_leave_at_any_byte():
    async def test() -> None:
        request = b"POST /9 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        async with World(sizes()) as world:
            for size in range(len(request)):
                got = await world.talk(request[:size], end=True)
                assert (got == b"") if size == 0 else got.startswith(b"HTTP/1.1 400 "), (size, got)
                _reader, writer = await world.connect()
                writer.write(request[:size])
                await asyncio.sleep(0)
                writer.transport.abort()
            assert (await world.talk(request, end=True)).endswith(b"\r\n\r\nabc")

    run(test)


def test_a_client_that_goes_while_it_waits_frees_the_back_end():
    async def test() -> None:
        async with World(says(close=False), timeouts={"response": 15}) as world:
            _reader, writer = await world.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: world.backends[0].live)
            started = time.monotonic()
            reset_now(writer)
            await world.settled()
            assert time.monotonic() - started < 3 and not world.backends[0].live and world.proxy.aborted == {"client": 1}

    run(test)


@pytest.mark.parametrize("target", ["/5000000", "/chunked/5000000", "/close/5000000"])
@pytest.mark.parametrize("splices", [True, False])
def test_a_client_that_goes_in_mid_body(target, splices):
    async def test() -> None:
        async with World(sizes(), splice=splices) as world:
            reader, writer = await world.connect()
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readexactly(10000)
            writer.transport.abort()
            await world.settled()
            assert sum(world.proxy.aborted.values()) == 1 and not world.backends[0].live

    run(test)


def test_a_client_that_takes_nothing():
    async def test() -> None:
        async with World(sizes(), splice=False, timeouts={"idle": 0.3}) as world:
            _reader, writer = await world.connect(limit=1024)
            writer.write(b"GET /30000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: world.proxy.aborted, 10)
            assert world.proxy.aborted == {"client": 1}

    run(test)


def test_pipelined_rubbish_behind_a_spliced_body():
    async def test() -> None:
        async with World(sizes()) as world:
            got = await world.talk(b"GET /50000 HTTP/1.1\r\nHost: x\r\n\r\nEVIL\0\r\n\r\n")
            first, _, rest = got.partition(body_of("/50000"))
            assert first.startswith(b"HTTP/1.1 200") and rest.startswith(b"HTTP/1.1 400 ")

    run(test)


def test_random_bytes():
    async def test() -> None:
        rng = random.Random(7)
        valid = b"POST /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"
        async with World(sizes(), timeouts={"header": 0.2, "idle": 0.2, "response": 0.2}) as world:

            async def one() -> None:
                data = bytearray(valid)
                for _ in range(rng.choice((1, 1, 2, 5))):
                    at = rng.randrange(len(data))
                    kind = rng.randrange(3)
                    if kind == 0:
                        data[at] = rng.choice(b"\r\n\0 \t:;,x05\xff")
                    elif kind == 1:
                        del data[at]
                    else:
                        data.insert(at, rng.choice(b"\r\n\0 \t:;,x05\xff"))
                got = await world.talk(bytes(data), end=True)
                assert got.startswith(b"HTTP/1.1 ") or not data.strip(), (data, got)

            for _ in range(30):
                await asyncio.gather(*(one() for _ in range(10)))

    run(test)


# -- back ends -----------------------------------------------------------------------------------------

ANSWERS = [
    (b"", b"ended its data in mid-head"),
    (b"HTTP/1.1 200 OK\r\nContent-Le", b"ended its data in mid-head"),
    (b"SSH-2.0-x\r\n\r\n", b"illegal status line"),
    (b"SSH-2.0-x\n", b"LF alone"),
    (b"HTTP/1.1 20 OK\r\n\r\n", b"illegal status line"),
    (b"HTTP/1.1 999 OK\r\n\r\n", b"status 999"),
    (b"HTTP/2.0 200 OK\r\n\r\n", b"an answer in HTTP/2.0"),
    (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", b"obsolete line folding"),
    (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", b"illegal header line"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"conflicting Content-Length"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"both Content-Length and"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"Transfer-Encoding"),
    (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"Transfer-Encoding in HTTP/1.0"),
    (b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b"101 for a request that asked for no upgrade"),
    (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n", b"a head of more than 16384 bytes"),
]


@pytest.mark.parametrize(("answer", "said"), ANSWERS, ids=range(len(ANSWERS)))
def test_a_back_end_that_speaks_no_http(answer, said, caplog):
    async def test() -> None:
        async with World(says(answer)) as world:
            got = await world.talk(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 502 ") and said in got.partition(b"\r\n\r\n")[2], got
            assert sum(world.proxy.refused.values()) == 1 and world.proxy.backends.members[0].errors == 1
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1 and "GET /here: 502: " in lines[0] and said.decode() in lines[0]

    run(test)


def test_a_back_end_that_is_silent(caplog):
    async def test() -> None:
        async with World(says(close=False), timeouts={"response": 0.2}) as world:
            got = await world.talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 504 ") and b"began no answer within 0.2 s" in got
        async with World(says(*[b"HTTP/1.1 102 Wait\r\n\r\n", 0.05] * 100), timeouts={"response": 0.2}) as world:
            got = await world.talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 102 Wait\r\n" in got and b"HTTP/1.1 504 " in got

    run(test)


SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 20000
CUT = [
    (says(SHORT), "spliced"), (says(SHORT, reset=True), "spliced"), (says(SHORT, close=False), "spliced"), (says(SHORT), "relayed"),
    (says(SHORT, reset=True), "relayed"), (says(SHORT, close=False), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", reset=True), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", close=False), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n5\r\n123456\r\n"), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\nzz\r\n"), "relayed"),
    (says(b"HTTP/1.1 200 OK\r\n\r\nabc", reset=True), "relayed"), (says(b"HTTP/1.1 200 OK\r\n\r\nabc", close=False), "relayed"),
]  # fmt: skip


@pytest.mark.parametrize(("handler", "kind"), CUT, ids=range(len(CUT)))
def test_a_truncated_body_never_looks_whole(handler, kind, caplog):
    async def test() -> None:
        async with World(handler, splice=kind == "spliced", timeouts={"idle": 0.3}) as world:
            got = await world.talk(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 200 OK") and got.endswith(b"RESET")
            assert world.proxy.aborted == {"backend": 1} and world.proxy.backends.members[0].errors == 1
            assert len(world.net.joins) == (kind == "spliced")
            assert not world.proxy.backends.members[0].pool
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(lines) == 1 and "GET /here: cut off: back end 127.0.0.1:" in lines[0]

    run(test)


LONG = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20000,
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
]
EXCESS = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"


@pytest.mark.parametrize("pause", [0.0, 0.1])
@pytest.mark.parametrize("answer", LONG, ids=range(len(LONG)))
def test_a_back_end_that_sends_more_than_it_announced(answer, pause, caplog):
    async def test() -> None:
        lies = says(answer + EXCESS, close=False) if not pause else says(answer, pause, EXCESS, close=False)
        if pause and b"Connection: close" in answer:
            return  # nobody listens any more
        async with World(lies) as world:
            reader, writer = await world.connect()
            for _ in range(2):
                # Each on a connection of its own: what came behind the first answer is no answer to the second request.
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                status, _fields, body = await read_response(reader)
                assert body == {200: b"x" * 20000 if b"20000" in answer else b"abc", 204: b""}[status]
                await asyncio.sleep(2 * pause)
            await until(lambda: not world.proxy.backends.members[0].pool and not world.backends[0].live)
            assert world.backends[0].connections == 2 and world.proxy.backends.members[0].errors == 2
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["it sent more than it had announced; the connection is closed"] * 2

    run(test)


def test_a_head_that_says_it_has_a_body_and_brings_one():
    async def test() -> None:
        async with World(says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", close=False)) as world:
            reader, writer = await world.connect()
            for _ in range(2):
                writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await read_response(reader, head_only=True))[1]["content-length"] == "4"
            await until(lambda: not world.backends[0].live)
            assert world.proxy.backends.members[0].errors == 2

    run(test)


def test_a_back_end_that_takes_no_body():
    async def test() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

        async with World(handler) as world:
            got = await world.talk(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
            assert got.startswith(b"HTTP/1.1 502 ")
            reader, writer = await world.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_response(reader))[0] == 502

    run(test)


def test_a_storm():
    """Good and bad clients at once; the good ones get what is theirs."""

    async def test() -> None:
        rng = random.Random(11)

        async def flaky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                _, target, _, _ = await read_request(reader)
                if rng.random() < 0.2:
                    writer.transport.abort()
                    return
                body = body_of(target)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()

        async with World(sizes("a"), flaky, sizes("c"), balance="least_connections") as world:
            whole = 0

            async def good(number: int) -> None:
                nonlocal whole
                reader, writer = await world.connect()
                for turn in range(10):
                    target = f"/{rng.choice((10, 3000, 30000, 200000))}?{number}.{turn}"
                    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    status, fields, body = await read_response(reader)
                    assert status == 502 or (status == 200 and body == body_of(target))
                    whole += status == 200
                    if fields.get("connection") == "close":
                        return

            async def bad() -> None:
                for _ in range(10):
                    _reader, writer = await world.connect()
                    writer.write(rng.choice((b"GET /300000 HTTP/1.1\r\nHost: x\r\n\r\n", POST + b"Content-Length: 9\r\n\r\na", b"GET\r\n")))
                    await asyncio.sleep(rng.random() / 50)
                    writer.transport.abort()

            await asyncio.gather(*(good(number) for number in range(12)), *(bad() for _ in range(8)))
            assert whole > 60

    run(test)
