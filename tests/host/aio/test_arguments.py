"""Arguments of `connect`, `listen` and their kin that cannot be, and options that would stop the event loop if they were taken."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

import pytest

import acceltcp.host
from acceltcp.host import Connection, ConnectionOptions, Nic, NicSocket

from .pair import FAR4, FAR6, NEAR4, run_pair


async def echo(connection: Connection) -> None:
    connection.write(await connection.readline())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": None}, "host must be an IP address like .*, not None"), ({"host": []}, r"host must be a name, .*, not \[\]"),
        ({"host": ""}, "host must be an IP address like .*, not ''"), ({"host": 5}, "host must be an IP address like .*, not 5"),
        ({"host": "fe80::1%nonsense"}, "without a zone"), ({"host": ["10.0.0.2", "x"]}, "host must be .*, not 'x'"),
        ({"port": "7"}, "port must be an integer from 1 to 65535, not '7'"), ({"port": 70000}, "port must be from 1 to 65535, not 70000"),
        ({"local_addr": "10.0.0.1"}, "local_addr must be an address or None and a port, .*, not '10.0.0.1'"),
        ({"local_addr": (None, 70000)}, "the port of local_addr must be from 0 to 65535, not 70000"),
        ({"local_addr": ("x", 0)}, "the address of local_addr must be an IP address like .*, not 'x'"),
        ({"timeout": "a"}, "timeout must be a number from 0 to .*, not 'a'"), ({"timeout": -1}, "timeout must be from 0 to .*, not -1"),
        ({"options": {"ttl": 3}}, "options must be a ConnectionOptions, not {'ttl': 3}"), ({"teardown": "no"}, "teardown must be True or False"),
    ],
)  # fmt: skip
def test_connect(options, text):
    async def test(near: Nic, far: Nic) -> None:
        arguments = {"host": FAR4, "port": 7, **options}
        with pytest.raises(ValueError, match=text):
            await near.connect(**arguments)
        with pytest.raises(ValueError, match=text):
            await near.create_connection(asyncio.Protocol, **arguments)
        assert not near.endpoint.connections

    run_pair(test)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"setup": "yes"}, "setup must be True or False, not 'yes'"), ({"lazy": 1}, "lazy must be True or False, not 1"),
        ({"ecn": "no"}, "ecn must be True or False"), ({"port": True}, "port must be an integer from 0 to 65535, not True"),
        ({"host": "nowhere"}, "host must be an IP address like .*, not 'nowhere'"), ({"mss": 1.5}, "mss must be an integer"),
    ],
)  # fmt: skip
def test_listen(options, text):
    async def test(near: Nic, far: Nic) -> None:
        arguments = {"port": 7, **options}
        with pytest.raises(ValueError, match=text):
            await far.listen(handler=echo, **arguments)
        with pytest.raises(ValueError, match=text):
            await far.create_server(asyncio.Protocol, **arguments)
        assert not far.servers

    run_pair(test)


def test_streams():
    async def test(near: Nic, far: Nic) -> None:
        with pytest.raises(ValueError, match=r"limit must be from 1 to .*, not -1"):
            await acceltcp.host.start_server(lambda reader, writer: None, None, 7, nic=far, limit=-1)
        with pytest.raises(ValueError, match=r"limit must be from 1 to .*, not 0"):
            await acceltcp.host.open_connection(FAR4, 7, nic=near, limit=0)
        with pytest.raises(ValueError, match="nic must be a Nic, not 'acc0'"):
            await acceltcp.host.open_connection(FAR4, 7, nic="acc0")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Nic\.create_server has no option 'reuse_port', only defer_accept, ecn, mss, window, wscale"):
            await acceltcp.host.start_server(lambda reader, writer: None, None, 7, nic=far, reuse_port=True)

    run_pair(test)


@pytest.mark.parametrize("setup", [True, False])
def test_where_one_can_listen(setup):
    """An address that is not ours is refused as by bind(2); any free port can be had; the address itself goes before any address."""

    async def test(near: Nic, far: Nic) -> None:
        with pytest.raises(OSError, match=r"10\.0\.0\.77 is no address of this NIC") as error:
            await far.listen(80, echo, host="10.0.0.77", setup=setup)
        assert error.value.errno == errno.EADDRNOTAVAIL
        free = await far.listen(0, echo, setup=setup)
        assert far.endpoint.settings.ports[0] <= free.port <= far.endpoint.settings.ports[1]
        async with await near.connect(FAR6, free.port) as connection:
            connection.write(b"there\n")
            assert await connection.readline() == b"there\n"

        def says(text: bytes):  # type: ignore[no-untyped-def]
            async def handler(connection: Connection) -> None:
                connection.write(text)

            return handler

        await far.listen(7, says(b"any"), host="0.0.0.0", setup=setup)
        one = await far.listen(7, says(b"one"), host=FAR4, setup=setup)
        async with await near.connect(FAR4, 7) as connection:
            assert await connection.read() == b"one"
        await one.close()
        async with await near.connect(FAR4, 7) as connection:
            assert await connection.read() == b"any"

    run_pair(test)


def test_workers_cannot_have_any_port():
    """Each would choose its own, and the NIC would spread none of them."""

    async def test(near: Nic, far: Nic) -> None:
        far.sharing = object()  # type: ignore[assignment]
        try:
            with pytest.raises(ValueError, match="in a worker, not 0"):
                await far.listen(0, echo)
            with pytest.raises(ValueError, match="in a worker, not 0"):
                await far.create_server(asyncio.Protocol)
        finally:
            far.sharing = None

    run_pair(test)


def test_options_are_the_connections_own():
    async def test(near: Nic, far: Nic) -> None:
        await far.listen(7, echo)
        async with await near.connect(FAR4, 7) as one, await near.connect(FAR4, 7) as two:
            with pytest.raises(ValueError, match="ttl must be from 1 to 255, not 0"):
                one.tcp.options.ttl = 0
            one.tcp.options.ttl = 9
            one.tcp.changed()
            assert one.tcp.options is one.tcp.options and one.tcp.peer.ttl == 9
            assert two.tcp.options.ttl == two.tcp.peer.ttl == 64
            for connection in (one, two):
                connection.write(b"x\n")
                assert await connection.readline() == b"x\n"
        async with await near.connect(FAR4, 7) as later:
            assert later.tcp.options.ttl == ConnectionOptions().ttl == 64

    run_pair(test)


def test_sockets_clip_or_refuse_as_the_kernel_does():
    """socket(7): buffer sizes are bounded; a linger time of -1 is the longest there is. A negative size is refused (the kernel takes it
    for a huge one)."""

    async def test(near: Nic, far: Nic) -> None:
        await far.listen(7, echo)
        async with await near.connect(FAR6, 7, local_addr=("::", 0)) as connection:
            sock = NicSocket(connection.tcp)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4096
            for name in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                with pytest.raises(OSError, match=r"BUF must be from 4096 to .*, not -5") as error:
                    sock.setsockopt(socket.SOL_SOCKET, name, -5)
                assert error.value.errno == errno.EINVAL
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, -1))
            assert connection.tcp.options.linger == (2**31 - 1) / 1000
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, -1))
            assert connection.tcp.options.linger is None
            with pytest.raises(OSError, match="IPV6_UNICAST_HOPS: ttl must be from 1") as error:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 0)
            assert error.value.errno == errno.EINVAL
            assert connection.tcp.options.ttl == 64

    run_pair(test)


def test_a_zone_is_an_interface_of_the_kernel():
    """`EventLoop` leaves such addresses to the kernel, which knows its interfaces."""

    async def test(near: Nic, far: Nic) -> None:
        loop = asyncio.get_running_loop()
        link_local = next(interface.ip for interface in near.addresses.interfaces if interface.ip.is_link_local)
        with pytest.raises(OSError):
            await loop.create_connection(asyncio.Protocol, f"{link_local}%nonsense", 7)
        with pytest.raises(OSError):
            await loop.create_server(asyncio.Protocol, f"{link_local}%nonsense", 7)
        assert not near.endpoint.connections and not near.servers
        server = await loop.create_server(asyncio.Protocol, NEAR4, 7)
        assert near.servers
        server.close()
        await server.wait_closed()

    run_pair(test)
