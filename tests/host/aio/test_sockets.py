"""Socket options by their usual names, compared with what the kernel's sockets do where that is the same."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from acceltcp.host.aio.sockets import copy_options

from ..test_stack import until
from .pair import FAR4, FAR6, run_pair
from .test_transport import Recorder

INT = struct.Struct("i")
SOL, TCP = socket.SOL_SOCKET, socket.IPPROTO_TCP


def with_socket(test, address=FAR4):
    """Run `test(sock, tcp, nic)` with the socket of an established connection, and its listener's end."""

    async def inside(near, far):
        protocols = []
        await far.create_server(lambda: protocols.append(Recorder()) or protocols[-1], None, 7)
        transport, _ = await near.create_connection(Recorder, address, 7)
        await until(lambda: protocols)
        await test(transport.get_extra_info("socket"), transport.get_extra_info("tcp"), near)
        transport.abort()

    run_pair(inside)


@pytest.mark.parametrize(
    ("level", "name", "value", "attribute", "expected"),
    [
        (SOL, "SO_KEEPALIVE", 1, "keepalive", True),
        (SOL, "SO_SNDBUF", 300_000, "sndbuf", 300_000),
        (SOL, "SO_RCVBUF", 500_000, "rcvbuf", 500_000),
        (SOL, "SO_RCVBUF", 1, "rcvbuf", 4096),
        (TCP, "TCP_NODELAY", 0, "nodelay", False),
        (TCP, "TCP_CORK", 1, "cork", True),
        (TCP, "TCP_QUICKACK", 1, "quickack", True),
        (TCP, "TCP_KEEPIDLE", 10, "keepidle", 10),
        (TCP, "TCP_KEEPINTVL", 5, "keepintvl", 5),
        (TCP, "TCP_KEEPCNT", 3, "keepcnt", 3),
        (TCP, "TCP_USER_TIMEOUT", 2500, "user_timeout", 2.5),
        (socket.IPPROTO_IP, "IP_TOS", 0xB8, "tos", 0xB8),
        (socket.IPPROTO_IP, "IP_TTL", 17, "ttl", 17),
    ],
)
def test_integers(level, name, value, attribute, expected):
    async def test(sock, tcp, nic):
        number = getattr(socket, name)
        sock.setsockopt(level, number, value)
        assert getattr(tcp.options, attribute) == expected
        stored = max(value, 4096) if "BUF" in name else value
        assert sock.getsockopt(level, number) == stored
        sock.setsockopt(level, number, INT.pack(value))
        assert sock.getsockopt(level, number, 4) == INT.pack(stored)
        # Others keep theirs: options are the connection's own from the first change on.
        other, _ = await nic.create_connection(Recorder, FAR4, 7)
        assert getattr(other.get_extra_info("tcp").options, attribute) != expected or name == "TCP_NODELAY"
        other.abort()

    with_socket(test)


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (TCP, "TCP_KEEPIDLE", 0), (TCP, "TCP_KEEPIDLE", 32768), (TCP, "TCP_KEEPINTVL", 0), (TCP, "TCP_KEEPCNT", 0),
        (TCP, "TCP_KEEPCNT", 128), (TCP, "TCP_MAXSEG", 87), (TCP, "TCP_MAXSEG", 32768), (TCP, "TCP_USER_TIMEOUT", -1),
        (socket.IPPROTO_IP, "IP_TTL", 0), (socket.IPPROTO_IP, "IP_TTL", 256), (TCP, "TCP_NODELAY", b"\1"), (SOL, "SO_LINGER", b"\1"),
    ],
)  # fmt: skip
def test_values_that_cannot_be(level, name, value):
    """The kernel refuses the same ones, with the same error."""
    number = getattr(socket, name)
    with socket.socket() as kernel, pytest.raises(OSError) as refused:
        kernel.setsockopt(level, number, value)
    assert refused.value.errno == errno.EINVAL

    async def test(sock, tcp, nic):
        with pytest.raises(OSError, match=name) as error:
            sock.setsockopt(level, number, value)
        assert error.value.errno == errno.EINVAL

    if value != b"\1" or name == "SO_LINGER":
        with_socket(test)


def test_linger_and_congestion():
    async def test(sock, tcp, nic):
        assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 0, 0)
        sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 7))
        assert tcp.options.linger == 7
        assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
        assert sock.getsockopt(TCP, socket.TCP_CONGESTION, 16) == b"cubic".ljust(16, b"\0")
        sock.setsockopt(TCP, socket.TCP_CONGESTION, b"reno\0")
        assert tcp.congestion.name == "reno"
        with pytest.raises(OSError, match=r"no congestion control 'vegas', only cubic, reno") as error:
            sock.setsockopt(TCP, socket.TCP_CONGESTION, b"vegas")
        assert error.value.errno == errno.ENOENT
        # SO_LINGER with 0 seconds makes close a reset.
        sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tcp.close()
        assert isinstance(tcp.error, ConnectionAbortedError)
        assert sock.getsockopt(SOL, socket.SO_ERROR) == errno.ECONNABORTED

    with_socket(test)


def test_what_is_accepted_or_known_or_not():
    async def test(sock, tcp, nic):
        sock.setsockopt(SOL, socket.SO_REUSEADDR, 1)
        sock.setsockopt(SOL, socket.SO_REUSEPORT, 1)
        assert sock.getsockopt(SOL, socket.SO_ERROR) == 0
        assert sock.getsockopt(SOL, socket.SO_TYPE) == socket.SOCK_STREAM
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert sock.fileno() == -1 and bool(sock)
        for level, number, name in (
            (SOL, socket.SO_BROADCAST, "SO_BROADCAST"), (TCP, socket.TCP_FASTOPEN, "TCP_FASTOPEN"),
            (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, "IPV6_TCLASS"), (SOL, 9999, "9999 of level 1"),
        ):  # fmt: skip
            with pytest.raises(OSError, match=name) as error:
                sock.setsockopt(level, number, 1)
            assert error.value.errno == errno.ENOPROTOOPT
            with pytest.raises(OSError, match=name):
                sock.getsockopt(level, number)
        with pytest.raises(ValueError, match="never block"):
            sock.setblocking(True)

    with_socket(test)


def test_ipv6():
    async def test(sock, tcp, nic):
        assert sock.family == socket.AF_INET6 and sock.getpeername() == (FAR6, 7, 0, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x20)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 9)
        assert (tcp.options.tos, tcp.options.ttl) == (0x20, 9)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, -1)
        assert tcp.options.ttl == 64

    with_socket(test, FAR6)


def test_tcp_info_is_the_kernels_structure():
    """Offsets are compared with a loopback connection of the kernel: same state, options and segment size fields."""

    def look(raw: bytes) -> tuple[int, ...]:
        words = struct.unpack_from("=24I", raw, 8)
        return (raw[0], raw[5] & 7, words[3 - 1] > 0, words[0] > 0, words[15] > 0, words[18] > 0, words[23])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as kernel, listener.accept()[0]:
            expected = look(kernel.getsockopt(TCP, socket.TCP_INFO, 104))

    async def test(sock, tcp, nic):
        raw = sock.getsockopt(TCP, socket.TCP_INFO, 104)
        assert len(raw) == 104 and look(raw) == expected
        assert struct.unpack_from("=24I", raw, 8)[2] == tcp.mss

    with_socket(test)


def test_options_are_copied_from_a_kernels_socket():
    with socket.socket() as sock:
        plain = copy_options(sock)
        assert not plain.nodelay and not plain.keepalive and plain.rcvbuf == 0
        sock.setsockopt(TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(SOL, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(TCP, socket.TCP_KEEPIDLE, 33)
        sock.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1500)
        sock.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 3))
        options = copy_options(sock)
    assert options.nodelay and options.keepalive and options.keepidle == 33 and options.user_timeout == 1.5
    assert options.linger == 3 and options.ttl == 64
