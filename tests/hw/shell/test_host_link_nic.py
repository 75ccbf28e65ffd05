"""The whole: the driver on one interface, the Verilated core behind its host link, a kernel client on another interface."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time

import pytest

import acceltcp.host
from acceltcp.host.device import Device, parse_mac
from acceltcp.host.errors import DeviceLostError
from hw.shell.host_link_nic import LinkedNic
from sim.wires import Impaired, Impairment, TapWire
from tests.hw.simulate import converts
from tests.system.namespace import isolated

from .linked_board import LinkedBoard
from .linked_top import BOARD_MAC, CONFIG

NETWORK, LINK = "net0", "link0"
KERNEL, NIC = "10.0.0.1", "10.0.0.2"
PORT = 7


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)


@contextlib.contextmanager
def plugged(loss: float = 0.0, duplicate: float = 0.0):
    """A board between two TAP interfaces; the link loses and repeats frames."""
    spoiled = Impairment(loss=loss, duplicate=duplicate)
    network, link = TapWire(NETWORK), TapWire(LINK)
    ip("link", "set", "lo", "up")
    ip("link", "set", NETWORK, "up")
    ip("link", "set", LINK, "up")
    ip("addr", "add", f"{KERNEL}/24", "dev", NETWORK)
    with LinkedBoard(network, Impaired(link, to_nic=spoiled, from_nic=spoiled)) as board:
        yield board


@pytest.mark.long
def test_converts():
    converts(LinkedNic(CONFIG))


@pytest.mark.slow
@isolated
def test_the_driver_finds_the_board_and_reads_what_it_is():
    with plugged(), Device.open(f"ethernet:{LINK}") as device:
        assert (device.identity.width, device.identity.queues, device.identity.flows) == (CONFIG.width, CONFIG.queues, CONFIG.flows)
        device.set_mac(parse_mac("02:00:00:00:00:02"))
        assert device.mac() == parse_mac("02:00:00:00:00:02")
        started = time.monotonic()
        reads = 200
        for _ in range(reads):
            device.registers.IDENT.magic.get()
        print(f"{(time.monotonic() - started) / reads * 1e6:.0f} us per register read")
    with plugged(), pytest.raises(DeviceLostError, match="went away"):
        with Device.open(f"ethernet:{LINK},{BOARD_MAC.to_bytes(6, 'big').hex(':')}") as device:
            ip("link", "set", LINK, "down")
            device.set_mac(parse_mac("02:00:00:00:00:02"))
            device.mac()


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def exchange(data: bytes) -> bytes:
    """Send it to the server, with the end after it; what comes back."""
    with socket.create_connection((NIC, PORT), timeout=60) as client:
        sender = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)), daemon=True)
        sender.start()
        back = b""
        while part := client.recv(1 << 16):
            back += part
        sender.join(10)
        return back


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "duplicate"), [pytest.param(0.0, 0.0, marks=pytest.mark.long, id="clean"), pytest.param(0.01, 0.01, id="lossy")]
)
@isolated
def test_a_kernel_client_is_served_through_the_link(loss, duplicate):
    data = bytes(range(256)) * 1024

    async def main(nic):
        server = await acceltcp.host.start_server(echo, port=PORT)
        started = time.monotonic()
        for number in range(8):
            assert await asyncio.to_thread(exchange, f"hello {number}".encode()) == f"hello {number}".encode()
        short = time.monotonic() - started
        assert await asyncio.to_thread(exchange, data) == data
        print(f"8 short connections {short:.2f} s, {len(data)} bytes there and back {time.monotonic() - started - short:.2f} s")
        counters = nic.device.counters()
        server.close()
        return counters

    with plugged(loss, duplicate):
        counters = acceltcp.host.run(main, device=f"ethernet:{LINK}", addresses=[f"{NIC}/24"], mac="02:00:00:00:00:02")
    assert counters["setup_syn_ack"] >= 9
    assert not counters["axi_read_errors"] + counters["axi_write_errors"]
