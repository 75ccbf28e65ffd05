"""How connections, handlers and devices end: what the peer sees, and what is said about it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal

import pytest

from acceltcp.host import Connection, DeviceError, DeviceLostError, Nic, simulated
from acceltcp.host.simulated import SimulatedTransport

from .test_stack import RealTime, run, until
from .world import ACK, M32, RST, Client, Seg


class Careful(Client):
    """Takes a reset as RFC 5961 section 3.2 says: at once if it is the next byte, with a question if it is in the window, else not.

    lacking: data segments do not arrive any more.
    """

    lacking = False
    questions = 0

    def receive(self, segment: Seg) -> None:
        if segment.flags & RST and segment.seq != self.rcv:
            if segment.seq - self.rcv & M32 < self.window << 7:
                self.questions += 1
                self.send(self.nxt, ACK)
        elif not (self.lacking and segment.payload):
            super().receive(segment)


def connect(net: RealTime, kind: type[Client] = Client) -> Client:
    client = kind(net, 40000)  # type: ignore[arg-type]
    client.connect()
    return client


async def send_much(connection: Connection) -> None:
    while True:
        connection.write(bytes(20_000))
        await connection.drain()


def test_a_client_that_reads_nothing_is_reset_by_close():
    """Its window is shut, and probes of it were sent beyond."""
    clients: list[Careful] = []

    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80, send_much)
        client = connect(net, Careful)
        clients.append(client)
        await until(lambda: client.got)
        client.window = 0
        client.send(client.nxt, ACK)
        (tcp,) = nic.endpoint.connections.values()
        await until(lambda: tcp.snd_wnd == 0 and tcp.snd_nxt > tcp.snd_una)

    run(test, linger=0.3)
    assert clients[0].reset and not clients[0].fin_seen


def test_a_client_that_lacks_data_is_reset_by_close_after_it_has_asked():
    clients: list[Careful] = []

    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80, send_much)
        client = connect(net, Careful)
        clients.append(client)
        await until(lambda: client.got)
        client.lacking = True
        (tcp,) = nic.endpoint.connections.values()
        await until(lambda: client.rcv - tcp.snd_nxt & M32 >= 1 << 31)

    run(test, linger=0.3)
    assert clients[0].questions and clients[0].reset and not clients[0].fin_seen


def test_listeners_are_named_by_all_their_addresses():
    async def test(nic: Nic, net: RealTime) -> None:
        await nic.listen(80)
        await nic.listen(81, host="10.0.0.2")
        assert set(nic.stats()["listeners"]) == {"10.0.0.2:80, [fd00::2]:80", "10.0.0.2:81"}

    run(test)


# -- handlers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError(errno.EHOSTUNREACH, "No route to host"),
        TimeoutError(),
        asyncio.IncompleteReadError(b"", 5),
    ],
)
def test_an_error_that_is_not_the_clients_is_told(caplog, error):
    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            raise error

        await nic.listen(80, handler)
        client = connect(net)
        await until(lambda: client.reset)

    run(test)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.getMessage().startswith("the handler of <Connection from 10.0.0.1 port 40000")
    assert repr(error) in record.getMessage() and not record.exc_info, "one line, of which there may be thousands"


@pytest.mark.parametrize("end", ["reset", "fin"])
def test_an_error_of_the_client_is_not(caplog, end):
    ended = []

    async def test(nic: Nic, net: RealTime) -> None:
        async def handler(connection: Connection) -> None:
            try:
                await connection.readexactly(5)
            except Exception as error:
                ended.append(type(error))
                raise

        server = await nic.listen(80, handler)
        client = connect(net)
        await until(lambda: server.connections)
        if end == "reset":
            client.send(client.nxt, RST)
        else:
            client.write(b"abc", fin=True)
        await until(lambda: ended and not server.connections)

    run(test)
    assert ended == [ConnectionResetError if end == "reset" else asyncio.IncompleteReadError]
    assert not caplog.records


# -- simulators --------------------------------------------------------------------------

FAILS = """
import sys
print("port 0 is plugged into acc0", file=sys.stderr)
print("acceltcp sim: the model was not built:\\n  error: 1", file=sys.stderr)
sys.exit(1)
"""
STUB = "import sys; from tests.sim import stub_cli; stub_cli.cli.open_nic = stub_cli.open_stub; sys.exit(stub_cli.cli.main(sys.argv[2:]))"


def test_a_simulator_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(simulated, "_BOOT", FAILS)
    with pytest.raises(DeviceError) as raised:
        SimulatedTransport({}, description="sim:x")
    assert str(raised.value) == "The simulator of sim:x ended with status 1; it said:\n  acceltcp sim: the model was not built:\n    error: 1"


def test_an_option_that_there_is_not(monkeypatch):
    monkeypatch.setattr(simulated, "_BOOT", STUB)
    with pytest.raises(DeviceError, match=r"it said:\n  acceltcp sim: error: there is no option --tapp; did you mean --tap"):
        SimulatedTransport({"tapp": "acc0"})


def test_a_simulator_that_is_killed_did_not_say_why(monkeypatch):
    """What it printed when it started is no reason."""
    monkeypatch.setattr(simulated, "_BOOT", STUB)
    transport = SimulatedTransport({"loss": "0.1", "seed": "7"}, description="sim:x")
    try:
        os.kill(transport.pid, signal.SIGKILL)
        with pytest.raises(DeviceLostError) as raised:
            for _ in range(1000):
                transport.read32(0)
        assert str(raised.value) == "The simulator of sim:x was ended by signal 9."
    finally:
        transport.close()
