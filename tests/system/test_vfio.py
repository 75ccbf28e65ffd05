"""The driver in a Linux guest: kernel, vfio-pci and IOMMU are real, the card is our RTL, its wire a TAP interface of this kernel."""

import contextlib
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from acceltcp.host.simulated import SimulatorProcess
from sim.cache import ROOT
from sim.guest import NIC_BDF
from sim.guest.image import PackagesError, guest_image
from sim.guest.machine import Machine

from .namespace import isolated
from .world import ADDRESSES, KERNEL4, NIC4, NIC6, START_S, plug, wait_until

DEVICE = f"vfio:{NIC_BDF}"
SERVE_S = 120
"""For a server in the guest to come up; an emulated processor takes long for imports."""

PAGE = b"from a guest\n"
LARGE = 1 << 20

AS_USER = ("/usr/bin/setpriv", "--reuid=user", "--regid=user", "--clear-groups")
"""Prefix of a command that has no rights."""


@pytest.fixture(autouse=True, scope="module")
def image():
    """Fetched out here: a test's own namespace has no way to Debian."""
    try:
        return guest_image()
    except PackagesError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def booted(tmp_path, sim="", **options):
    """A NIC on a TAP interface, and a guest that has it; yields the machine."""
    given = dict(word.split("=") for word in sim.split("&") if word)
    with SimulatorProcess({"tap": "acc0", **given}, "the NIC", start_timeout=START_S) as nic:
        plug()
        with Machine(guest_image(), [nic.path], console=tmp_path / "console.log", **options) as machine:
            yield machine


class Guest:
    """What a user would type in the guest."""

    def __init__(self, machine):
        self.machine = machine
        self.agent = machine.agent
        self.logs = 0

    def acceltcp(self, *words, fails=False, user=False):
        """Output of a command, or its one line of error."""
        prefix = AS_USER if user else ()
        done = self.agent.run(*prefix, "acceltcp", *words, check=False)
        assert (done.returncode == 1) if fails else (done.returncode == 0), done
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip() if fails else done.stdout

    def shell(self, script):
        return self.agent.run("sh", "-c", script).stdout.strip()

    @contextlib.contextmanager
    def serving(self, *words, end=signal.SIGTERM, before="", user=False):
        """A server of the command; yields a function that gives what it has said. It is ended by `end`."""
        log = self.machine.shared / f"server{self.logs}.log"
        self.logs += 1
        log.touch(mode=0o666)
        prefix = f"{' '.join(AS_USER)} " if user else ""
        addresses = " ".join(f"--address {address}" for address in ADDRESSES)
        command = f"{before} exec {prefix}acceltcp {' '.join(words)} --device {DEVICE} {addresses} >/shared/{log.name} 2>&1"
        process = self.agent.start("sh", "-c", command)
        try:
            wait_until(f"the server is up: {log.read_text()}", lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, SERVE_S)
            assert process.poll() is None, log.read_text()
            yield log.read_text
        finally:
            self.agent.run("kill", f"-{end.value}", str(process.pid), check=False)
            process.wait(SERVE_S)
        if end == signal.SIGTERM:
            assert process.poll() == 0, log.read_text()

    def counters(self):
        return json.loads(self.acceltcp("stats", "--device", DEVICE, "--json", "--all"))["counters"]

    @property
    def bus_master(self):
        """Whether the card may reach for memory."""
        return "BusMaster+" in self.shell(f"lspci -vv -s {NIC_BDF}")

    @property
    def interrupts(self):
        """Vector -> how often."""
        lines = self.shell("grep vfio-msix /proc/interrupts || true").splitlines()
        return {line.split()[-1]: int(line.split()[1]) for line in lines}


def curl(url):
    """Its body."""
    done = subprocess.run(["curl", "-gsS", "--max-time", "60", url], capture_output=True, timeout=70, check=False)
    assert done.returncode == 0, (url, done.stderr)
    return done.stdout


def echo(data, address=NIC4):
    with socket.create_connection((address, 7), timeout=60) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        got = b""
        while part := link.recv(65536):
            got += part
    return got


def digest(data):
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def back_end(content):
    """A web server of the kernel's, with one page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer((KERNEL4, 8000), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.long
@isolated
@pytest.mark.timeout(300)
def test_a_shell_in_the_guest(tmp_path):
    """`acceltcp vm` as somebody uses it at a terminal."""
    said = tmp_path / "terminal.log"
    with said.open("wb") as output:
        command = [sys.executable, "-m", "acceltcp", "vm"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, bufsize=0) as terminal:
            try:
                wait_until("the prompt is there", lambda: b"guest:~# " in said.read_bytes() or terminal.poll() is not None, START_S)
                terminal.stdin.write(f"acceltcp bind 00:03.0 && acceltcp info --device {DEVICE}; poweroff\n".encode())
                assert terminal.wait(SERVE_S) == 0, said.read_text(errors="replace")
            finally:
                terminal.kill()
    text = said.read_text(errors="replace")
    assert "the kernel's side of acc0 has 10.0.0.1/24 and fd00::1/64" in text
    assert "has the driver vfio-pci now" in text and "SETUP, RSS, TEARDOWN, SPLICE" in text, text


@pytest.mark.long
@isolated
@pytest.mark.timeout(300)
def test_neighbour_in_the_group(tmp_path):
    """The chipset's functions share one. A neighbour whose driver comes later makes the group unusable."""
    sata, neighbour = "0000:00:1f.2", "0000:00:1f.3 (i801_smbus)"
    with booted(tmp_path) as machine:
        guest = Guest(machine)
        assert "no AccelTCP NIC" in guest.acceltcp("bind", sata, fails=True)
        assert "has the driver vfio-pci now" in guest.acceltcp("bind", sata, "--force")
        assert "is PCI device 8086:2922, not 1234:acc7" in guest.acceltcp("info", "--device", f"vfio:{sata}", fails=True)
        guest.shell("modprobe i2c-i801")
        assert neighbour in guest.acceltcp("info", "--device", f"vfio:{sata}", fails=True)
        assert "has no driver now" in guest.acceltcp("unbind", sata)
        assert neighbour in guest.acceltcp("bind", sata, "--force", fails=True)


@pytest.mark.long
@isolated
@pytest.mark.timeout(300)
def test_without_an_iommu(tmp_path):
    with booted(tmp_path, iommu=False) as machine:
        guest = Guest(machine)
        assert "is behind no IOMMU" in guest.acceltcp("bind", NIC_BDF, fails=True)
        # Whoever goes past `bind` gets no further: the kernel has a group for no device.
        guest.shell(f"echo vfio-pci > /sys/bus/pci/devices/{NIC_BDF}/driver_override; modprobe vfio-pci; echo {NIC_BDF} > /sys/bus/pci/drivers_probe || true")
        said = guest.acceltcp("info", "--device", DEVICE, fails=True)
        assert "has no driver, not vfio-pci" in said or "is behind no IOMMU" in said, said


@pytest.mark.long
@isolated
@pytest.mark.timeout(400)
def test_small_pages_and_workers(tmp_path):
    """Each page of the guest is a mapping of its own; three processes share the card."""
    with booted(tmp_path, huge_pages=False) as machine:
        guest = Guest(machine)
        guest.acceltcp("bind", NIC_BDF)
        data = os.urandom(200_000)
        with guest.serving("echo"):
            assert echo(data) == data
    with booted(tmp_path) as machine:
        guest = Guest(machine)
        guest.acceltcp("bind", NIC_BDF)
        with guest.serving("echo", "--workers", "2"):
            for _ in range(8):  # the hash of ports spreads them
                assert echo(data) == data


@isolated
@pytest.mark.timeout(600)
def test_driver_in_a_guest(tmp_path):
    """One boot for all of it, as a boot takes longer than most of what is done with it."""
    with booted(tmp_path) as machine:
        guest = Guest(machine)
        bind_and_look(guest)
        serve_by_interrupts(guest)
        user_without_rights(guest)
        killed_and_started_again(guest)
        splice(guest, machine.shared)
        memory_that_is_not_mapped(guest)
        device_that_is_taken_away(guest)


def bind_and_look(guest):
    assert "has no driver, not vfio-pci: 'sudo acceltcp bind" in guest.acceltcp("info", "--device", DEVICE, fails=True)
    assert "has the driver vfio-pci now" in guest.acceltcp("bind", NIC_BDF.removeprefix("0000:"))
    assert guest.shell(f"basename $(readlink /sys/bus/pci/devices/{NIC_BDF}/driver)") == "vfio-pci"
    info = json.loads(guest.acceltcp("info", "--device", DEVICE, "--json"))
    assert (info["width_bytes"], info["ports"], info["queues"]) == (64, 1, 4)
    assert not guest.bus_master


def serve_by_interrupts(guest):
    pages = guest.machine.shared / "pages"
    pages.mkdir()
    (pages / "index.html").write_bytes(PAGE)
    large = os.urandom(LARGE)
    (pages / "large").write_bytes(large)
    with guest.serving("http", "--directory", "/shared/pages") as said:
        assert guest.bus_master
        assert curl(f"http://{NIC4}/") == PAGE
        assert curl(f"http://[{NIC6}]/") == PAGE
        assert digest(curl(f"http://{NIC4}/large")) == digest(large)
        counters = guest.counters()
        assert counters["setup_cookie_good"] >= 3 and counters["flow_opened"] >= 2, counters
        assert counters["axi_read_errors"] == counters["axi_write_errors"] == 0
        first, *others = guest.interrupts.items()
        assert "vfio-msix[0]" in first[0] and first[1] > 10
        assert all(count == 0 for _, count in others)
        in_use = guest.agent.run("python3", "-c", f"import acceltcp.host as h; h.Device.open({DEVICE!r})", check=False)
        assert f"{DEVICE} is in use" in in_use.stderr, in_use
        assert "Serving http" in said()


def user_without_rights(guest):
    said = guest.acceltcp("info", "--device", DEVICE, fails=True, user=True)
    assert "You may not use /dev/vfio/" in said and "acceltcp bind" in said, said
    assert ", of user" in guest.acceltcp("bind", NIC_BDF, "--owner", "user")
    low = guest.agent.run(
        "sh", "-c", f"ulimit -l 1024; exec {' '.join(AS_USER)} acceltcp echo --device {DEVICE}", check=False
    )
    assert low.returncode == 1 and "the limit is 1,048,576 bytes" in low.stderr and "Traceback" not in low.stderr, low


def killed_and_started_again(guest):
    """A user's server, which polls, and then one that waits for interrupts."""
    with guest.serving("echo", "--poll", user=True, before="ulimit -l 262144;", end=signal.SIGKILL):
        assert echo(PAGE) == PAGE
        assert all(count == 0 for count in guest.interrupts.values())
        assert guest.bus_master
    assert not guest.bus_master, "the kernel has not stopped the card of a process that was killed"
    data = os.urandom(100_000)
    with guest.serving("echo"):
        assert guest.counters()["setup_cookie_good"] == 0, "the counters of the process before are still there"
        assert echo(data) == data
        assert echo(data, NIC6) == data


def splice(guest, shared):
    large = os.urandom(LARGE)
    (shared / "lb.toml").write_text(
        f'[listen]\naddress = "{NIC4}"\nport = 80\n[[backends]]\nhost = "{KERNEL4}"\nport = 8000\n'
    )
    with back_end(large), guest.serving("lb", "--config", "/shared/lb.toml"):
        assert digest(curl(f"http://{NIC4}/")) == digest(large)
        counters = guest.counters()
        assert counters["splice_opened"] >= 1 and counters["splice_octets"] > LARGE // 2, counters


def memory_that_is_not_mapped(guest):
    done = guest.agent.run("python3", str(ROOT / "tests" / "system" / "misprogrammed.py"), NIC_BDF)
    said = json.loads(done.stdout)
    assert said["tx_errors"] == 1, said
    assert "did not finish" in said["wrong_rings"], said
    assert said["counters"]["axi_read_errors"] >= 2 and said["counters"]["tx_packets"] == 0, said
    assert said["afterwards"] == 0, said


def device_that_is_taken_away(guest):
    """The kernel asks the server to let go, and waits until it has."""
    log = guest.machine.shared / "taken.log"
    process = guest.agent.start("sh", "-c", f"exec acceltcp echo --device {DEVICE} >/shared/{log.name} 2>&1")
    wait_until("the server is up", lambda: log.exists() and "Ctrl-C" in log.read_text(), SERVE_S)
    assert "has no driver now" in guest.acceltcp("unbind", NIC_BDF)
    done = process.wait(SERVE_S)
    assert done.returncode == 1, log.read_text()
    assert f"{DEVICE} went away: the kernel wants it back" in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
