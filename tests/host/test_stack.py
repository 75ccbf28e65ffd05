"""The asyncio front on the functional model, with the clients of `world` in real time."""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import Callable

import pytest

import acceltcp.host
from acceltcp.abi.messages import CommandOpcode, ListenFlag, Status
from acceltcp.abi.registers import Feature
from acceltcp.host import Connection, Device, DeviceError, DeviceLostError, Nic, TcpSettings
from acceltcp.host import nic as nic_module

from . import world
from .fake_device import FakeTransport

ADDRESSES = ["10.0.0.2/24", "fd00::2/64"]
QUICK = TcpSettings(time_wait=0.1, linger=0.1, min_rto=0.05, initial_rto=0.1)


class RealTime:
    """What `world.Client` needs of a world, on the running event loop."""

    _to_client = world.World._to_client

    def __init__(self, transport: FakeTransport) -> None:
        self.transport = transport
        self.random = random.Random(1)
        self.clients: dict[int, world.Client] = {}
        self.strays: list[world.Seg] = []
        self.swap = 0.0
        transport.on_wire = self._from_nic

    def _from_nic(self, frame: bytes) -> None:
        if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and frame[23 if frame[12] == 8 else 20] == 6:
            asyncio.get_running_loop().call_soon(self._to_client, frame)

    @property
    def now(self) -> float:
        return time.monotonic()

    def at(self, when: float, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(max(when - self.now, 0), what)

    def to_nic(self, frame: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.transport.inject, frame)

    def connect(self, port: int = 40000, **options: object) -> world.Client:
        client = world.Client(self, port, **options)  # type: ignore[arg-type]
        client.connect()
        return client


def run(test, **options):
    """Run `test(nic, net)` with an open NIC whose MAC the clients know."""
    transport = FakeTransport()

    async def inside() -> None:
        net = RealTime(transport)
        async with acceltcp.host.open(
            Device(transport), ADDRESSES, mac="02:00:00:00:00:02", **{"tcp": QUICK, **options}
        ) as nic:
            await test(nic, net)
        assert transport.closed

    asyncio.run(asyncio.wait_for(inside(), 20))
    return transport


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)


# -- serving -----------------------------------------------------------------------------


@pytest.mark.parametrize("poll", [False, True])
@pytest.mark.parametrize("v6", [False, True])
def test_echo(poll, v6):
    async def test(nic: Nic, net: RealTime) -> None:
        async def echo(connection: Connection) -> None:
            assert connection.peername == ("fd00::1" if v6 else "10.0.0.1", 40000)
            assert connection.sockname == ("fd00::2" if v6 else "10.0.0.2", 80)
            assert connection.get_extra_info("peername") == connection.peername
            while data := await connection.read(1000):
                connection.write(data)
                await connection.drain()

        server = await nic.listen(80, echo)
        client = net.connect(v6=v6)
        data = random.Random(3).randbytes(100_000)
        client.write(data, fin=True)
        await until(lambda: client.fin_seen)
        assert bytes(client.got) == data and server.accepted == 1
        await until(lambda: not server.connections)

    run(test, poll=poll)


def test_reading_functions():
    async def test(nic: Nic, net: RealTime) -> None:
        results: list[object] = []

        async def handler(connection: Connection) -> None:
            results.append(await connection.readline())
            results.append(await connection.readexactly(5))
            results.append(await connection.readuntil(b"END"))
            results.append(await connection.read(0))
            with pytest.raises(asyncio.LimitOverrunError):
                await connection.readuntil(b"@", limit=4)
            results.append(await connection.read())
            results.append(await connection.read(10))
            results.append(await connection.readline())
            assert connection.at_eof()
            with pytest.raises(asyncio.IncompleteReadError):
                await connection.readexactly(1)
            connection.writelines([b"o", b"k"])
            connection.write_eof()
            with pytest.raises(BrokenPipeError):
                connection.write(b"more")
            assert connection.is_closing() and connection.can_write_eof()
            await connection.wait_closed()
            results.append("closed")

        await nic.listen(80, handler)
        client = net.connect()
        for part in (b"a li", b"ne\n12", b"345xxEN", b"D", b"the rest"):
            client.write(part)
            await asyncio.sleep(0.02)
        client.write(b"", fin=True)
        await until(lambda: "closed" in results)
        assert results == [b"a line\n", b"12345", b"xxEND", b"", b"the rest", b"", b"", "closed"]
        assert bytes(client.got) == b"ok"

    run(test)


def test_lines_by_iteration():
    async def test(nic: Nic, net: RealTime) -> None:
        lines: list[bytes] = []

        async def handler(connection: Connection) -> None:
            async for line in connection:
                lines.append(line)

        await nic.listen(80, handler)
        net.connect().write(b"a\nb\nc", fin=True)
        await until(lambda: len(lines) == 3)
        assert lines == [b"a\n", b"b\n", b"c"]

    run(test)


def test_drain_waits_for_a_slow_client():
    async def test(nic: Nic, net: RealTime) -> None:
        drained = asyncio.Event()

        async def handler(connection: Connection) -> None:
            connection.write(bytes(1 << 20))
            await connection.drain()
            drained.set()

        await nic.listen(80, handler)
        client = net.connect(window=0)
        await asyncio.sleep(0.3)
        assert not drained.is_set()
        client.window = 65535
        client.send(client.nxt, world.ACK)
        await asyncio.wait_for(drained.wait(), 5)
        await until(lambda: len(client.got) == 1 << 20)

    run(test)


def test_reset_reaches_reader_and_writer():
    async def test(nic: Nic, net: RealTime) -> None:
        seen: list[type] = []

        async def handler(connection: Connection) -> None:
            with pytest.raises(ConnectionResetError):
                await connection.read(10)
            for action in (lambda: connection.write(b"x"),):
                with pytest.raises(ConnectionResetError):
                    action()
            with pytest.raises(ConnectionResetError):
                await connection.drain()
            with pytest.raises(ConnectionResetError):
                await connection.wait_closed()
            seen.append(ConnectionResetError)

        await nic.listen(80, handler)
        client = net.connect()
        await until(lambda: nic.endpoint.connections)
        client.send(client.nxt, world.RST)
        await until(lambda: seen)

    run(test)


def test_handler_that_fails_resets(caplog):
    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            raise RuntimeError("oops")

        await nic.listen(80, handler)
        client = net.connect()
        await until(lambda: client.reset)

    run(test)
    assert "oops" in caplog.text


def test_accept_without_a_handler():
    async def test(nic: Nic, net: RealTime) -> None:
        async with await nic.listen(80) as server:
            waiting = asyncio.ensure_future(server.accept())
            client = net.connect()
            async with await waiting as connection:
                connection.write(b"hello")
            await until(lambda: client.fin_seen)
            assert bytes(client.got) == b"hello"
        with pytest.raises(OSError):
            await server.accept()

    run(test)


# -- listening ---------------------------------------------------------------------------


def test_second_listener_names_address_and_port():
    async def test(nic: Nic, net: RealTime) -> None:
        server = await nic.listen(80, host="10.0.0.2")
        with pytest.raises(OSError, match=r"already a listener on 10\.0\.0\.2 port 80") as refused:
            await nic.listen(80)
        assert refused.value.errno == errno.EADDRINUSE
        await nic.listen(80, host="fd00::2")  # what was refused has left nothing behind
        await server.close()
        await server.close()
        await nic.listen(80, host="10.0.0.2")

    run(test)


def test_failed_listen_takes_back_what_it_had_set_up():
    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80, host="fd00::2")
        with pytest.raises(OSError):
            await nic.listen(80)
        assert len(net.transport.listen) == 1

    run(test)


def test_full_table():
    async def test(nic: Nic, net: RealTime) -> None:
        with pytest.raises(OSError, match="no room for") as refused:
            for port in range(1, 100):
                await nic.listen(port)
        assert refused.value.errno == errno.ENOBUFS

    run(test)


def test_what_the_nic_is_told():
    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80)
        await nic.listen(81, host="::", defer_accept=True, ecn=True, mss=1000, window=8192, wscale=3)
        entries = list(net.transport.listen.values())
        assert [entry["mss"] for entry in entries] == [1460, 1440, 1000]
        assert [entry["flags"] for entry in entries] == [
            0, ListenFlag.IPV6, ListenFlag.IPV6 | ListenFlag.ANY_ADDRESS | ListenFlag.DEFER_ACCEPT | ListenFlag.ECN,
        ]  # fmt: skip
        assert [(entry["window"], entry["wscale"]) for entry in entries] == [(65535, 7)] * 2 + [(8192, 3)]
        assert entries[0]["address"].to_bytes(16, "little") == bytes(12) + bytes([10, 0, 0, 2])
        assert entries[2]["address"] == 0

    run(test)


@pytest.mark.parametrize(
    "options", [{"port": -1}, {"port": 70000}, {"backlog": 0}, {"mss": 63}, {"window": 0}, {"wscale": 15}, {"max_connections": 0}]
)
def test_bad_arguments_are_named(options):
    async def test(nic: Nic, net: RealTime) -> None:
        (name,) = options
        with pytest.raises(ValueError, match=f"{name} must be from"):
            await nic.listen(**{"port": 80, **options})

    run(test)


def test_nic_without_the_feature():
    transport = FakeTransport()
    transport.features = Feature(0)

    async def main() -> None:
        async with acceltcp.host.open(Device(transport), ADDRESSES) as nic:
            with pytest.raises(DeviceError, match="built without SETUP"):
                await nic.listen(80, setup=True)
            await nic.listen(80)  # then the host does the handshakes
            assert not transport.listen

    asyncio.run(main())


def test_full_backlog_pauses_the_listener():
    async def test(nic: Nic, net: RealTime) -> None:
        release = asyncio.Event()

        async def handler(connection: Connection) -> None:
            await release.wait()

        server = await nic.listen(80, handler, host="10.0.0.2", backlog=4, max_connections=2)
        for port in range(40000, 40006):
            net.connect(port)
        await until(lambda: server.paused)
        late = net.connect(50000)
        await asyncio.sleep(0.1)
        assert not late.established and net.transport.counters["setup_drop_paused"] >= 1
        assert server.connections == 2
        release.set()
        await until(lambda: late.established)
        await until(lambda: server.accepted == 7)
        assert not server.paused and server.pauses >= 1

    run(test)


# -- trouble -----------------------------------------------------------------------------


def test_command_without_an_answer(monkeypatch):
    async def test(nic: Nic, net: RealTime) -> None:
        net.transport.swallow_commands = True
        with pytest.raises(DeviceError, match="did not finish NOP within"):
            await nic.command(bytes(64), timeout=0.05)
        net.transport.swallow_commands = False
        await nic.nop()

    run(test)


def test_refused_command():
    async def test(nic: Nic, net: RealTime) -> None:
        net.transport.command_hook = lambda fields: (
            Status.BAD_ARGUMENT if fields["opcode"] == CommandOpcode.LISTEN else None
        )
        with pytest.raises(ValueError, match=r"does not accept the listener on 10\.0\.0\.2 port 80"):
            await nic.listen(80)

    run(test)


def test_lost_device_ends_everything_with_a_reason():
    transport = FakeTransport()

    async def main() -> None:
        net = RealTime(transport)
        errors: list[BaseException] = []
        async with acceltcp.host.open(Device(transport), ADDRESSES, mac="02:00:00:00:00:02", tcp=QUICK) as nic:

            async def handler(connection: Connection) -> None:
                try:
                    while await connection.read(10):
                        pass
                except OSError as error:
                    errors.append(error)

            server = await nic.listen(80, handler)
            client = net.connect()
            await until(lambda: nic.endpoint.connections)
            serving = asyncio.ensure_future(server.serve_forever())
            transport.dead = DeviceLostError("fake: went away: test.")
            client.write(b"x")
            with pytest.raises(DeviceLostError, match="went away: test"):
                await asyncio.wait_for(serving, 30)
            await until(lambda: errors)
            assert isinstance(errors[0], ConnectionAbortedError)
            with pytest.raises(DeviceLostError):
                await nic.nop()
        assert transport.closed

    asyncio.run(main())


def test_close_finishes_what_is_closing_and_resets_the_rest():
    clients: list[world.Client] = []

    async def test(nic: Nic, net: RealTime) -> None:
        async def polite(connection: Connection) -> None:
            connection.write(b"bye")

        async def stuck(connection: Connection) -> None:
            await connection.read()

        await nic.listen(80, polite)
        await nic.listen(81, stuck)
        clients.extend([net.connect(40000), net.connect(40001, dst_port=81)])
        await until(lambda: len(nic.endpoint.connections) == 2)

    transport = run(test, linger=0.3)
    assert bytes(clients[0].got) == b"bye" and clients[0].fin_seen
    assert clients[1].reset
    assert not transport.listen


def test_stats_have_every_layer():
    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80)
        stats = nic.stats()
        assert set(stats) == {"counters", "queue", "tcp", "flows", "splice", "network", "listeners"}
        assert stats["counters"]["commands"] == 2 and stats["queue"]["commands"] == 2

    run(test)


def test_bad_nic_arguments():
    with pytest.raises(ValueError, match="mtu must be from 1280"):
        Nic("sim:", ADDRESSES, mtu=500)
    with pytest.raises(ValueError, match="MAC address"):
        Nic("sim:", ADDRESSES, mac="nonsense")
    assert nic_module.open is acceltcp.host.open


def test_device_that_cannot_be_opened():
    async def main() -> None:
        with pytest.raises(DeviceError, match="no such socket"):
            async with acceltcp.host.open("vfio-user:/nonexistent", ADDRESSES):
                pass

    asyncio.run(main())
