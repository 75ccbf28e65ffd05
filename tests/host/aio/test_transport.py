"""Transports on the functional model: what asyncio documents of protocols and transports, with the clients of `world`."""

from __future__ import annotations

import asyncio
import errno
import random
from dataclasses import replace
from typing import Any

import pytest

from acceltcp.host import Nic, TcpTransport, ViewProtocol

from ..test_stack import QUICK, RealTime, run, until


class Recorder(asyncio.Protocol):
    """Writes down every callback."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self.calls: list[Any] = []
        self.got = bytearray()
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.transport: TcpTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TcpTransport)
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes and data
        self.got += data
        if self.calls[-1] != "data":
            self.calls.append("data")

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: BaseException | None) -> None:
        self.calls.append(("lost", type(error)))
        self.lost.set_result(error)  # a second call would raise


def serve(test, make=Recorder, **options):
    """Run `test(nic, net, protocols)` with a server of such protocols at port 80."""

    async def inside(nic: Nic, net: RealTime) -> None:
        protocols: list[Any] = []

        def factory():
            protocols.append(make())
            return protocols[-1]

        server = await nic.create_server(factory, None, 80)
        await test(nic, net, protocols)
        server.close()
        await server.wait_closed()

    return run(inside, **options)


async def opened(net: RealTime, protocols: list[Any], port: int = 40000, **options: Any):
    """A client, and the protocol that it got."""
    client = net.connect(port, **options)
    count = len(protocols)
    await until(lambda: len(protocols) > count)
    return client, protocols[-1]


@pytest.mark.parametrize("keep_open", [False, True])
def test_order_of_callbacks(keep_open):
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.write(b"hello", fin=True)
        await until(lambda: "eof" in protocol.calls)
        if keep_open:
            await asyncio.sleep(0.05)
            assert not protocol.transport.is_closing() and not protocol.lost.done()
            protocol.transport.write(b"late")
            await until(lambda: client.got == b"late")
            protocol.transport.close()
        assert protocol.transport.is_closing()
        assert await asyncio.wait_for(protocol.lost, 30) is None
        assert protocol.calls == ["made", "data", "eof", ("lost", type(None))]
        await until(lambda: client.fin_seen)

    serve(test, lambda: Recorder(keep_open=keep_open))


def test_close_delivers_what_was_written():
    data = random.Random(5).randbytes(900_000)

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        protocol.transport.write(data)
        assert protocol.transport.get_write_buffer_size() == 900_000 - (1 << 18)
        protocol.transport.close()
        assert protocol.transport.is_closing() and not protocol.lost.done()
        await asyncio.sleep(0)
        assert not protocol.lost.done(), "what does not fit the send buffer is still the transport's"
        assert await asyncio.wait_for(protocol.lost, 5) is None
        await until(lambda: client.fin_seen)
        assert client.got == data

    serve(test)


def test_reset_by_the_peer():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.send(client.nxt, 4)  # RST
        error = await asyncio.wait_for(protocol.lost, 30)
        assert isinstance(error, ConnectionResetError) and error.errno == errno.ECONNRESET
        assert protocol.calls == ["made", ("lost", ConnectionResetError)]
        protocol.transport.write(b"into the void")
        protocol.transport.close()
        protocol.transport.abort()
        await asyncio.sleep(0.02)
        assert protocol.calls == ["made", ("lost", ConnectionResetError)]

    serve(test)


def test_abort_resets_and_has_no_error():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        protocol.transport.write(b"x" * 100_000)
        protocol.transport.abort()
        assert protocol.transport.is_closing()
        assert await asyncio.wait_for(protocol.lost, 30) is None
        await until(lambda: client.reset)

    serve(test)


def test_water_marks():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        transport = protocol.transport
        transport.set_write_buffer_limits(high=100_000, low=20_000)
        assert transport.get_write_buffer_limits() == (20_000, 100_000)
        sndbuf = transport.tcp.options.sndbuf
        transport.write(bytes(sndbuf + 100_000))
        assert protocol.calls == ["made"]
        transport.write(b"x")
        assert protocol.calls == ["made", "pause"]
        sizes = []
        protocol.resume_writing = lambda: (sizes.append(transport.get_write_buffer_size()), protocol.calls.append("resume"))
        await until(lambda: "resume" in protocol.calls)
        assert protocol.calls == ["made", "pause", "resume"] and sizes[0] <= 20_000
        await until(lambda: len(client.got) == sndbuf + 100_001)

    serve(test)


def test_paused_reading_closes_the_window_and_loses_nothing():
    data = random.Random(6).randbytes(400_000)

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        transport = protocol.transport
        transport.pause_reading()
        assert not transport.is_reading()
        client.write(data, fin=True)
        await until(lambda: client.seen and client.seen[-1].window == 0)
        await asyncio.sleep(0.2)
        # The window never shrinks because of its scale (RFC 7323 section 2.4); TCP grants 64 KiB for that.
        assert protocol.calls == ["made"] and transport.tcp.buffered <= nic.endpoint.settings.receive_buffer + 0x10000
        transport.resume_reading()
        assert transport.is_reading() and protocol.calls == ["made"], "not from within resume_reading"
        await asyncio.wait_for(protocol.lost, 8)
        assert protocol.got == data
        assert protocol.calls[:3] == ["made", "data", "eof"]

    serve(test, tcp=replace(QUICK, receive_buffer=150_000))


def test_data_before_a_reset_are_delivered_when_reading_goes_on():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        protocol.transport.pause_reading()
        client.write(b"last words")
        await until(lambda: protocol.transport.tcp.buffered)
        client.send(client.nxt, 4)
        await until(lambda: protocol.transport.tcp.closed)
        await asyncio.sleep(0.02)
        assert protocol.calls == ["made"]
        protocol.transport.resume_reading()
        assert isinstance(await asyncio.wait_for(protocol.lost, 30), ConnectionResetError)
        assert protocol.calls == ["made", "data", ("lost", ConnectionResetError)] and protocol.got == b"last words"

    serve(test)


def test_paused_from_the_beginning():
    class Shy(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.write(b"abc")
        await until(lambda: protocol.transport.tcp.buffered == 3)
        assert protocol.calls == ["made"]
        protocol.transport.resume_reading()
        await until(lambda: protocol.got == b"abc")

    serve(test, Shy)


class Buffered(asyncio.BufferedProtocol):
    """Takes data in buffers of odd sizes, pauses now and then."""

    def __init__(self) -> None:
        self.rng = random.Random(7)
        self.got = bytearray()
        self.eof = self.pausing = False
        self.pauses = 0

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        self.buffer = bytearray(self.rng.choice((1, 7, 100, 1000, 5000)))
        return self.buffer

    def buffer_updated(self, nbytes):
        assert 0 < nbytes <= len(self.buffer)
        assert not self.pausing, "data while paused"
        self.got += self.buffer[:nbytes]
        if self.rng.random() < 0.05:
            self.pausing = True
            self.pauses += 1
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.001, self.go_on)

    def go_on(self):
        self.pausing = False
        self.transport.resume_reading()

    def eof_received(self):
        self.eof = True


def test_buffered_protocol():
    data = random.Random(8).randbytes(300_000)

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.write(data, fin=True)
        await until(lambda: protocol.eof, 10)
        assert protocol.got == data and protocol.pauses > 3

    serve(test, Buffered)


class Viewer(ViewProtocol):
    """Takes views of the ring."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.views: list[memoryview] = []
        self.eof = False

    def connection_made(self, transport):
        self.transport = transport

    def view_received(self, view):
        assert isinstance(view, memoryview)
        self.got += view
        self.views.append(view)

    def eof_received(self):
        self.eof = True


def test_view_protocol_sees_the_ring_itself():
    data = random.Random(9).randbytes(200_000)

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.write(data, fin=True)
        await until(lambda: protocol.eof)
        assert protocol.got == data
        rings = {id(view.obj) for view in nic.queue._rx_views}
        assert sum(id(view.obj) in rings for view in protocol.views) > len(protocol.views) // 2

    serve(test, Viewer)


def test_change_of_protocol_in_the_middle():
    """As `start_tls` does it: no byte goes to the wrong one, none is lost."""

    class First(Recorder):
        def data_received(self, data):
            super().data_received(data)
            if self.transport.get_protocol() is self:
                self.transport.pause_reading()
                self.second = Buffered()
                self.second.connection_made(self.transport)
                self.transport.set_protocol(self.second)
                asyncio.get_running_loop().call_later(0.02, self.transport.resume_reading)

    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        client.write(b"a" * 100)
        await asyncio.sleep(0.01)
        client.write(b"b" * 50_000, fin=True)
        await until(lambda: protocol.got and protocol.second.eof)
        assert protocol.got + protocol.second.got == b"a" * 100 + b"b" * 50_000
        assert protocol.got.startswith(b"a" * 100) and protocol.second.got

    serve(test, First)


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
def test_a_protocol_that_raises_is_aborted(where):
    reported: list[dict[str, Any]] = []

    class Faulty(Recorder):
        pass

    def fail(self, *arguments):
        if where == "connection_made":
            self.transport = arguments[0]
        raise ZeroDivisionError("test")

    setattr(Faulty, where, fail)

    async def test(nic, net, protocols):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        client, protocol = await opened(net, protocols)
        client.write(b"x", fin=True)
        assert isinstance(await asyncio.wait_for(protocol.lost, 30), ZeroDivisionError)
        await until(lambda: client.reset)
        assert len(reported) == 1 and isinstance(reported[0]["exception"], ZeroDivisionError)
        assert where in reported[0]["message"]

    serve(test, Faulty)


def test_wrong_use():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        transport = protocol.transport
        with pytest.raises(TypeError, match="bytes-like object, not 'str'"):
            transport.write("text")
        transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        assert transport.can_write_eof()
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"d")
        await until(lambda: client.fin_seen)
        assert client.got == b"abc" and not protocol.lost.done()
        client.write(b"still", fin=True)
        await until(lambda: protocol.got == b"still")
        await asyncio.wait_for(protocol.lost, 30)

    serve(test)


@pytest.mark.parametrize("v6", [False, True])
def test_extra_info(v6):
    async def test(nic, net, protocols):
        _, protocol = await opened(net, protocols, v6=v6)
        info = protocol.transport.get_extra_info
        assert info("peername") == (("fd00::1", 40000, 0, 0) if v6 else ("10.0.0.1", 40000))
        assert info("sockname") == (("fd00::2", 80, 0, 0) if v6 else ("10.0.0.2", 80))
        assert info("socket").getpeername() == info("peername")
        assert info("tcp") is protocol.transport.tcp and info("nic") is nic
        assert info("sslcontext") is None and info("cipher", "none") == "none"

    serve(test)


def test_detach_gives_all_that_was_not_delivered():
    async def test(nic, net, protocols):
        client, protocol = await opened(net, protocols)
        protocol.transport.pause_reading()
        client.write(b"kept")
        await until(lambda: protocol.transport.tcp.buffered)
        tcp = protocol.transport.detach()
        assert tcp.consume(10) == b"kept" and tcp.events is None and tcp.sink is None
        with pytest.raises(OSError, match="nothing is left to detach"):
            protocol.transport.detach()
        client.write(b"more")
        await until(lambda: tcp.buffered == 4)
        assert protocol.calls == ["made"]
        protocol.transport.close()
        await asyncio.sleep(0.02)
        assert protocol.calls == ["made"] and not tcp.closed
        tcp.abort()
        nic.schedule_flush()

    serve(test)


def test_closing_the_nic_resets_open_transports_and_tells_their_protocols():
    told: list[Recorder] = []

    async def test(nic, net, protocols):
        _, protocol = await opened(net, protocols)
        told.append(protocol)

    serve(test, linger=0.1)
    assert told[0].calls == ["made", ("lost", type(None))]
