"""`splice` on the model NIC: client and server are on the near NIC, the proxy is on the far one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

import acceltcp.host
from acceltcp.abi.messages import SPLICE_UNIT_STEPS, CommandOpcode, Status
from acceltcp.host import Connection, DeviceError, DeviceLostError, Nic, SpliceResult, TcpTransport, splice
from acceltcp.host.aio import splice as splice_module

from ..test_stack import until
from .pair import FAR4, FAR6, NEAR4, NEAR6, run_pair
from .test_connections import echo, round_trip
from .test_transport import Recorder

DATA = random.Random(5).randbytes(300_000)
KINDS = (True, False)
"""In the NIC, and in software."""


def run_spliced(test: Callable[[Nic, Nic], Awaitable[None]], *, splices: int = 16, **options) -> None:
    """`run_pair` with a far NIC that splices; after it, nothing of any splice is left."""

    async def inside(near: Nic, far: Nic) -> None:
        await test(near, far)
        if far._error is None:
            await until(lambda: far.splices is None or not far.splices.open)
            assert far.flows is None or far.flows.pool.used == 0 or far.flows.open
            assert not near.endpoint.splices

    run_pair(inside, far_splices=splices, **options)


class Proxy:
    """far:80, whose connections and what became of them; near:8080 is the server behind it."""

    def __init__(self, near: Nic, far: Nic, work: Callable[[Connection, Connection], Awaitable[object]]) -> None:
        self.near, self.far, self.work = near, far, work
        self.results: list[object] = []
        self.sides: list[Connection] = []

    async def start(self, server: Callable[..., Awaitable[None]] = echo, v6: bool = False) -> None:
        await acceltcp.host.start_server(server, None, 8080, nic=self.near)
        self.v6 = v6
        await self.far.listen(80, self._serve)

    async def _serve(self, connection: Connection) -> None:
        behind = await self.far.connect(NEAR6 if self.v6 else NEAR4, 8080)
        self.sides += [connection, behind]
        try:
            self.results.append(await self.work(connection, behind))
        except (OSError, DeviceError, ValueError) as error:
            self.results.append(error)

    async def result(self) -> object:
        await until(lambda: self.results, 15)
        return self.results[0]


# -- until both have closed ----------------------------------------------------------------------


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("hardware", KINDS)
def test_both_ways(hardware, v6):
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, lambda one, two: splice(one, two, hardware=hardware))
        await proxy.start(v6=v6)
        await round_trip(*await acceltcp.host.open_connection(FAR6 if v6 else FAR4, 80, nic=near), DATA)
        result = await proxy.result()
        assert isinstance(result, SpliceResult)
        assert (result.reason, result.hardware, result.refused) == ("closed", hardware, None)
        assert (result.client_octets, result.server_octets) == (len(DATA), len(DATA))
        stats = far.stats()
        if hardware:
            assert result.client_packets > 100 and result.server_packets > 100
            assert result.host_packets < (result.client_packets + result.server_packets) // 4
            assert stats["splice"]["hardware"] == stats["splice"]["closed"] == 1 and stats["splice"]["live"] == 0
            assert stats["counters"]["splice_packets"] > 200
        else:
            assert stats["splice"]["software"] == 1 and stats["splice"]["hardware"] == 0
        assert all(side.detached for side in proxy.sides)
        await until(lambda: not far._users and not far.endpoint.connections)

    run_spliced(test)


def test_a_splice_lingers_as_long_as_other_tuples():
    async def test(near: Nic, far: Nic) -> None:
        unit = far.device.flow_step_s() * SPLICE_UNIT_STEPS
        said = far.device.registers.SPLICE.linger.read()["units"]
        assert said * unit >= far.endpoint.settings.linger > (said - 1) * unit

    run_spliced(test)


def test_the_nic_does_it_unless_told_otherwise():
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, splice)
        await proxy.start()
        client = await near.connect(FAR4, 80)
        client.write(b"hello")
        assert await client.readexactly(5) == b"hello"
        client.write_eof()
        assert await client.read() == b""
        client.close()
        result = await proxy.result()
        assert isinstance(result, SpliceResult) and result.hardware

    run_spliced(test)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("hardware", KINDS)
def test_a_reset_resets_the_other_side(hardware, side):
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, lambda one, two: splice(one, two, hardware=hardware))
        behind: list[asyncio.StreamWriter] = []
        ended: list[BaseException | None] = []

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            behind.append(writer)
            try:
                writer.write(await reader.readexactly(1))
                await reader.read()
                ended.append(None)
            except OSError as error:
                ended.append(error)

        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        assert await client.read(10) == b"x"
        if side == 0:
            client.abort()
            await until(lambda: ended)
            assert isinstance(ended[0], ConnectionResetError)
        else:
            behind[0].transport.abort()
            with pytest.raises(ConnectionResetError):
                await client.read()
        result = await proxy.result()
        who = ("client", "server")[side]
        assert isinstance(result, ConnectionResetError) and str(result).endswith(f": the {who} has reset the connection"), result
        await until(lambda: not far._users and not far.endpoint.connections)

    run_spliced(test)


@pytest.mark.parametrize("hardware", KINDS)
def test_cancelled(hardware):
    async def test(near: Nic, far: Nic) -> None:
        tasks: list[asyncio.Task[object]] = []

        async def work(one: Connection, two: Connection) -> None:
            tasks.append(asyncio.ensure_future(splice(one, two, hardware=hardware)))
            await asyncio.wait(tasks)

        proxy = Proxy(near, far, work)
        await proxy.start()
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        assert await client.read(10) == b"x"
        tasks[0].cancel()
        with pytest.raises(ConnectionResetError):
            await client.read()
        await until(lambda: not far._users and not far.endpoint.connections)
        assert tasks[0].cancelled()

    run_spliced(test)


@pytest.mark.parametrize("limit", [None, 1000])
@pytest.mark.parametrize("hardware", KINDS)
def test_idle(hardware, limit):
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, lambda one, two: splice(one, two, limit, idle_timeout=0.3, hardware=hardware))
        await proxy.start()
        client = await near.connect(FAR4, 80)
        if limit is None:
            client.write(b"x")
            assert await client.read(10) == b"x"
        result = await proxy.result()
        assert isinstance(result, TimeoutError) and "0.3 s" in str(result), result
        with pytest.raises(ConnectionResetError):
            await client.read()
        await until(lambda: not far._users and not far.endpoint.connections)

    run_spliced(test)


# -- with a limit --------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1 << 30, 70_000])
@pytest.mark.parametrize("hardware", KINDS)
def test_several_answers_on_one_connection(hardware, most, monkeypatch):
    """As an HTTP proxy does it: a head in software, a body by the splice, again and again, on the same two connections."""
    monkeypatch.setattr(splice_module, "SPLICE_LIMIT_MAX", most)
    rng = random.Random(3)
    sizes = [1, 100, 65_536, *(rng.randrange(1, 200_000) for _ in range(4)), 1]

    async def test(near: Nic, far: Nic) -> None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                size = int(line)
                writer.write(b"%d\n" % size + DATA[:size])
                await writer.drain()
            writer.close()

        results: list[SpliceResult] = []

        async def work(one: Connection, two: Connection) -> str:
            while line := await one.readline():
                two.write(line)
                head = await two.readline()
                one.write(head)
                results.append(await splice(one, two, int(head), hardware=hardware))
            one.close()
            two.close()
            return "done"

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        for size in sizes[: len(sizes) // 2]:
            client.write(b"%d\n" % size)
            assert await client.readline() == b"%d\n" % size
            assert hashlib.sha256(await client.readexactly(size)).digest() == hashlib.sha256(DATA[:size]).digest()
        # Pipelined: what the client has sent meanwhile is read after the splice.
        client.write(b"".join(b"%d\n" % size for size in sizes[len(sizes) // 2 :]))
        for size in sizes[len(sizes) // 2 :]:
            assert await client.readline() == b"%d\n" % size
            assert await client.readexactly(size) == DATA[:size]
        client.write_eof()
        assert await client.read() == b""
        assert await proxy.result() == "done"
        assert [result.server_octets for result in results] == sizes
        assert all(result.reason == "limit" and result.client_octets == 0 for result in results)
        if hardware:
            assert any(result.hardware for result in results)
            if most < 100_000:
                assert far.stats()["splice"]["limit"] > len([result for result in results if result.hardware])
        await until(lambda: not far._users)

    run_spliced(test)


@pytest.mark.parametrize("hardware", KINDS)
def test_the_server_ends_too_early(hardware):
    async def test(near: Nic, far: Nic) -> None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(DATA[:5000])
            writer.close()

        async def work(one: Connection, two: Connection) -> SpliceResult:
            two.write(await one.read(1))
            return await splice(one, two, 6000, hardware=hardware)

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        result = await proxy.result()
        assert isinstance(result, ConnectionResetError) and "1000 bytes before the limit" in str(result), result
        with pytest.raises(ConnectionResetError):
            await client.readexactly(6000)
        await until(lambda: not far._users and not far.endpoint.connections)

    run_spliced(test)


@pytest.mark.parametrize("hardware", KINDS)
def test_the_server_sends_more_and_closes(hardware):
    """Data and FIN beyond the limit are there afterwards."""

    async def test(near: Nic, far: Nic) -> None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(DATA[:50_000] + b"too much")
            writer.close()

        async def work(one: Connection, two: Connection) -> bytes:
            two.write(await one.read(1))
            await splice(one, two, 50_000, hardware=hardware)
            rest = await two.read()
            one.close()
            two.close()
            return rest

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        assert await client.read() == DATA[:50_000]
        client.close()
        assert await proxy.result() == b"too much"
        await until(lambda: not far._users)

    run_spliced(test)


@pytest.mark.parametrize("hardware", KINDS)
def test_transports(hardware):
    """Protocols get back what they have lent, and hear nothing meanwhile."""

    async def test(near: Nic, far: Nic) -> None:
        fronts: list[Recorder] = []

        def front() -> Recorder:
            fronts.append(Recorder())
            return fronts[-1]

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(DATA[:20_000])
            assert await reader.read() == b"again"
            writer.write(b"bye")
            writer.close()

        await acceltcp.host.start_server(server, None, 8080, nic=near)
        await far.create_server(front, None, 80)
        client = await near.connect(FAR4, 80)
        await until(lambda: fronts)
        one = fronts[0].transport
        two, back = await far.create_connection(Recorder, NEAR4, 8080)
        assert isinstance(one, TcpTransport) and isinstance(two, TcpTransport)
        two.write(b"x")
        result = await splice(one, two, 20_000, hardware=hardware)
        assert result.server_octets == 20_000
        assert await client.readexactly(20_000) == DATA[:20_000]
        client.write(b"question")
        await until(lambda: bytes(fronts[0].got) == b"question")
        two.write(b"again")
        two.write_eof()
        await until(lambda: bytes(back.got) == b"bye")
        client.close()
        one.close()
        await until(lambda: not far._users)

    run_spliced(test)


# -- refusals ------------------------------------------------------------------------------------


def test_a_nic_that_does_not_splice():
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, splice)
        await proxy.start()
        await round_trip(*await acceltcp.host.open_connection(FAR4, 80, nic=near), DATA)
        result = await proxy.result()
        assert isinstance(result, SpliceResult) and not result.hardware and result.refused == "no_feature"
        assert far.stats()["splice"]["refused"] == {"no_feature": 1}
        insisting = Proxy(near, far, lambda one, two: splice(one, two, hardware=True))
        insisting.v6 = False
        await far.listen(81, insisting._serve)
        await near.connect(FAR4, 81)
        error = await insisting.result()
        assert isinstance(error, DeviceError) and "SPLICE" in str(error)

    run_pair(test)


@pytest.mark.parametrize("status", [Status.TABLE_FULL, Status.NO_SECRET])
def test_the_nic_refuses(status):
    async def test(near: Nic, far: Nic) -> None:
        far.device.transport.command_hook = lambda fields: status if fields["opcode"] == CommandOpcode.SPLICE else None
        proxy = Proxy(near, far, splice)
        await proxy.start()
        await round_trip(*await acceltcp.host.open_connection(FAR4, 80, nic=near), DATA)
        result = await proxy.result()
        assert isinstance(result, SpliceResult) and not result.hardware and result.refused == status.name.lower()
        assert (result.client_octets, result.server_octets) == (len(DATA), len(DATA))

    run_spliced(test)


def test_the_nic_refuses_with_a_limit():
    """Then the rest goes in software, and the connections live on."""

    async def test(near: Nic, far: Nic) -> None:
        far.device.transport.command_hook = lambda fields: (
            Status.TABLE_FULL if fields["opcode"] == CommandOpcode.SPLICE else None
        )

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(DATA[: int(line)])
                await writer.drain()
            writer.close()

        async def work(one: Connection, two: Connection) -> list[SpliceResult]:
            results = []
            for _ in range(3):
                line = await one.readline()
                two.write(line)
                results.append(await splice(one, two, int(line)))
            return results

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        for size in (1, 50_000, 200_000):
            client.write(b"%d\n" % size)
            assert await client.readexactly(size) == DATA[:size]
        results = await proxy.result()
        assert isinstance(results, list)
        assert [(one.server_octets, one.hardware) for one in results] == [(1, False), (50_000, False), (200_000, False)]
        assert results[0].refused == "table_full"
        assert far.stats()["splice"]["refused"]["table_full"] >= 1
        client.close()
        for side in proxy.sides:
            side.close()
        await until(lambda: not far._users)

    run_spliced(test)


def test_insisting_on_what_cannot_be():
    """One side has no timestamps: the connections are as before, and the reason is named."""

    async def test(near: Nic, far: Nic) -> None:
        async def work(one: Connection, two: Connection) -> str:
            with pytest.raises(OSError, match="timestamps") as info:
                await splice(one, two, hardware=True)
            assert info.value.errno == errno.EOPNOTSUPP
            two.write(await one.read(10))
            one.write(await two.read(10))
            result = await splice(one, two)
            return str(result.refused)

        far.endpoint.settings = replace(far.endpoint.settings, timestamps=False)
        proxy = Proxy(near, far, work)
        await proxy.start()
        client = await near.connect(FAR4, 80)
        client.write(b"x")
        assert await client.read(1) == b"x"
        client.write_eof()
        assert await client.read() == b""
        client.close()
        assert await proxy.result() == "timestamps"

    run_spliced(test)


def test_bad_arguments():
    async def test(near: Nic, far: Nic) -> None:
        await far.listen(80, lambda connection: asyncio.sleep(10))
        one, two = await near.connect(FAR4, 80), await near.connect(FAR4, 80)
        for arguments, options, match in (
            ((one, one), {}, "same connection"), ((one, two, 0), {}, "limit"), ((one, two, -1), {}, "limit"),
            ((one, two), {"idle_timeout": 0}, "idle_timeout"), ((one, two), {"idle_timeout": -1}, "idle_timeout"),
            ((one, two), {"hardware": 1}, "hardware"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=match):
                await splice(*arguments, **options)
        one.close()
        with pytest.raises(OSError, match="client's connection is closed") as info:
            await splice(one, two)
        assert info.value.errno == errno.ENOTCONN and two.is_closing()

    run_pair(test)


async def ended_by(near: Nic, far: Nic, side: int, work: Callable[..., Awaitable[object]]) -> OSError:
    """What `work` raises, which is told of client, server and how to abort the peer of one of the two; the other peer sees a reset."""
    served: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def server(connection: Connection) -> None:
        served.set_result(connection)
        await connection.wait_closed()

    async def spliced(one: Connection, two: Connection) -> object:
        return await work(one, two, (client, await served)[side].abort)

    await near.listen(8080, server)
    proxy = Proxy(near, far, spliced)
    proxy.v6 = False
    await far.listen(80, proxy._serve)
    client = await near.connect(FAR4, 80)
    error = await proxy.result()
    assert isinstance(error, OSError)
    with pytest.raises(ConnectionResetError):
        await (client, served.result())[1 - side].read()
    await until(lambda: not far._users)
    return error


@pytest.mark.parametrize("limit", [None, 1000])
@pytest.mark.parametrize("hardware", [None, False])
@pytest.mark.parametrize("side", [0, 1])
def test_a_connection_that_had_ended_takes_the_other_one_with_it(side, hardware, limit):
    """A proxy whose client leaves while it connects to the back end has nobody else to close that."""

    async def test(near: Nic, far: Nic) -> None:
        async def work(one: Connection, two: Connection, abort: Callable[[], None]) -> None:
            abort()
            await until((one, two)[side].is_closing)
            await splice(one, two, limit, hardware=hardware)

        error = await ended_by(near, far, side, work)
        assert error.errno == errno.ENOTCONN
        assert str(error).endswith(f"the {('client', 'server')[side]}'s connection is closed, it cannot be spliced")

    run_spliced(test)


@pytest.mark.parametrize("limit", [None, 1000])
@pytest.mark.parametrize("side", [0, 1])
def test_a_connection_that_ends_while_the_nic_is_asked_and_refuses(side, limit):
    async def test(near: Nic, far: Nic) -> None:
        far.device.transport.command_hook = lambda fields: (
            Status.TABLE_FULL if fields["opcode"] == CommandOpcode.SPLICE else None
        )

        async def work(one: Connection, two: Connection, abort: Callable[[], None]) -> None:
            splicing = asyncio.ensure_future(splice(one, two, limit))
            await asyncio.sleep(0)
            abort()
            await splicing

        assert f"the {('client', 'server')[side]}" in str(await ended_by(near, far, side, work))

    run_spliced(test)


@pytest.mark.parametrize("limits", [(None, None), (1000, None), (1000, 10)])
@pytest.mark.parametrize("hardware", KINDS)
def test_a_connection_is_in_one_splice_only(hardware, limits):
    """Whoever asks for a second one is told so, and the first one goes on."""

    async def test(near: Nic, far: Nic) -> None:
        async def work(one: Connection, two: Connection) -> object:
            three = await far.connect(NEAR4, 8080)
            first = asyncio.ensure_future(splice(one, two, limits[0], hardware=hardware))
            await until(lambda: one.tcp.events is not one and (not hardware or far.splices.held))
            for sides, who in (((one, two), "client"), ((one, three), "client"), ((three, two), "server")):
                for how in (None, True, False):
                    with pytest.raises(OSError, match=f"the {who}'s connection is spliced already") as info:
                        await splice(*sides, limits[1], hardware=how)
                    assert info.value.errno == errno.EBUSY
            assert not three.is_closing() and not first.done()
            three.close()
            asked.set()
            return await first

        asked = asyncio.Event()

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked.wait()
            writer.write(DATA[:1000])
            await reader.read()
            writer.close()

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        assert await client.readexactly(1000) == DATA[:1000]
        client.write_eof()
        result = await proxy.result()
        assert isinstance(result, SpliceResult) and result.hardware == hardware, result
        client.close()
        for side in proxy.sides:
            side.close()

    run_spliced(test)


@pytest.mark.parametrize("teardown", [True, False])
@pytest.mark.parametrize("act", [Connection.close, Connection.write_eof, Connection.abort])
def test_a_client_that_its_owner_closes_while_it_is_relayed(act, teardown, caplog):
    """Both are reset, at the server's next data at the latest; and nothing is said of exceptions that nobody has asked for."""

    async def test(near: Nic, far: Nic) -> None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.write(DATA[:1000])
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()

        async def work(one: Connection, two: Connection) -> object:
            one.teardown = teardown
            two.write(b"x")
            splicing = asyncio.ensure_future(splice(one, two, 2000, hardware=False))
            await asyncio.sleep(0)
            act(one)
            return await splicing

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        error = await proxy.result()
        assert isinstance(error, ConnectionAbortedError) and "the client's connection" in str(error), error
        with contextlib.suppress(ConnectionResetError):
            await client.read()
        client.close()
        await until(lambda: not far._users)

    run_spliced(test)
    gc.collect()
    assert not caplog.records


def test_a_spliced_connection_is_not_its_owners():
    async def test(near: Nic, far: Nic) -> None:
        async def work(one: Connection, two: Connection) -> object:
            task = asyncio.ensure_future(splice(one, two, 1000, hardware=True))
            await until(lambda: far.splices is not None and far.splices.held)
            with pytest.raises(OSError, match="spliced"):
                one.write(b"x")
            task.cancel()
            return "done"

        proxy = Proxy(near, far, work)
        await proxy.start()
        client = await near.connect(FAR4, 80)
        assert await proxy.result() == "done"
        with pytest.raises(ConnectionResetError):
            await client.read()

    run_spliced(test)


# -- the device ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1000])
def test_the_device_goes_away(limit):
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, lambda one, two: splice(one, two, limit))
        await proxy.start()
        await near.connect(FAR4, 80)
        await until(lambda: far.splices is not None and far.splices.held)
        far.device.transport.dead = DeviceLostError("fake: went away: test.")
        far._check_device()
        assert isinstance(await proxy.result(), ConnectionAbortedError)
        assert far.splices is not None and far.splices.stats()["lost"] == 1 and not far.splices.open
        far.device.transport.dead = None

    run_spliced(test)


def test_closing_the_nic_ends_splices():
    async def test(near: Nic, far: Nic) -> None:
        proxy = Proxy(near, far, splice)
        await proxy.start()
        client = await near.connect(FAR4, 80)
        await until(lambda: far.splices is not None and far.splices.held)
        closing = asyncio.ensure_future(far.close())
        with pytest.raises(ConnectionResetError):
            await client.read()
        await closing
        assert far.splices is not None and not far.splices.open
        assert isinstance(await proxy.result(), (ConnectionAbortedError, asyncio.CancelledError))

    run_spliced(test)


def test_a_connection_that_is_opened_to_be_spliced():
    """The client has no timestamps, so the one to the server is opened without them."""

    async def test(near: Nic, far: Nic) -> None:
        results: list[SpliceResult] = []

        async def work(one: Connection) -> None:
            assert not one.tcp.timestamps
            with pytest.raises(ValueError, match="splice_with"):
                await far.connect(NEAR4, 8080, splice_with=one.tcp)  # type: ignore[arg-type]
            results.append(await splice(one, await far.connect(NEAR4, 8080, splice_with=one), hardware=True))

        await acceltcp.host.start_server(echo, None, 8080, nic=near)
        await far.listen(80, work)
        near.endpoint.settings = replace(near.endpoint.settings, timestamps=False)
        client = await near.connect(FAR4, 80)
        near.endpoint.settings = replace(near.endpoint.settings, timestamps=True)
        client.write(b"hello")
        assert await client.readexactly(5) == b"hello"
        client.write_eof()
        assert await client.read() == b""
        client.close()
        await until(lambda: results, 10)
        assert results[0].hardware

    run_spliced(test)


@pytest.mark.parametrize("closed", [False, True])
def test_an_answer_to_an_end_of_data(closed):
    """The proxy has half-closed towards the server, as HTTP/1.0 may; or the server has closed already, and all is there."""

    async def test(near: Nic, far: Nic) -> None:
        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b"request"
            writer.write(DATA[:3000])
            if closed:
                writer.close()
            await asyncio.sleep(1)

        async def work(one: Connection, two: Connection) -> SpliceResult:
            two.write(await one.read(7))
            two.write_eof()
            if closed:
                await until(lambda: two.tcp.fin_received)
            result = await splice(one, two, 3000)
            one.close()
            two.close()
            return result

        proxy = Proxy(near, far, work)
        await proxy.start(server)
        client = await near.connect(FAR4, 80)
        client.write(b"request")
        assert await client.read() == DATA[:3000]
        client.close()
        result = await proxy.result()
        assert isinstance(result, SpliceResult) and result.server_octets == 3000 and result.refused == "state"

    run_spliced(test)
