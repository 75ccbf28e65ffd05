"""Several processes on one NIC: a worker per queue, each with an event loop and a TCP of its own.

    async def main(nic):                       # runs in every worker
        server = await nic.listen(7, handler)
        await server.serve_forever()

    acceltcp.host.workers.run(main, "sim:?tap=acc0", ["10.0.0.2/24"], workers=4)

The process that calls `run` owns the device. It opens and configures it, forks the workers and has a queue of its own, the
one after theirs, that answers ARP, neighbour discovery and echo. The NIC spreads TCP over the workers' queues by the
Toeplitz hash (`acceltcp.abi.toeplitz`), so that all packets of a connection come to one worker. A worker sends and receives
through its own rings in its own memory, rings its own doorbells over its own channel, and waits for an interrupt of its own: on the packet path it
shares nothing and locks nothing.

A worker that dies takes its connections with it. What it had handed over to the NIC to close is closed none the less, as its memory outlives
it. Its part of the indirection table goes to the others (whose connections stay where they are) or, with `restart`, to its successor.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias
from urllib.parse import urlencode

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from acceltcp.abi.registers import QUEUES_MAX, RSS_KEY_BYTES, Feature, RssType
from acceltcp.abi.toeplitz import key_words, spread_evenly
from acceltcp.abi.wire import ARP, ETHERNET, IPV4, IPV6, EtherType, IPProtocol

from .device import WATCHDOG_S, Device
from .errors import CommandRefusedError, DeviceError, DeviceTimeoutError
from .nic import Nic
from .sharing import MESSAGE_BYTES_MAX, Kind, Sharing, pack_answer, unpack_command
from .tcp import TcpSettings
from .transport import SIMULATED_QUEUES, Transport, split_spec

__all__ = ["Main", "Stop", "Workers", "run"]

log = logging.getLogger("acceltcp")

Main = Callable[[Nic], Awaitable[None]]

MEMORY_BYTES = 64 << 20
"""Memory that the device can reach, per worker; what is never touched costs nothing."""

_START_S = 30.0
_STOP_S = 10.0
_RESTARTS_MAX = 5
_RESTARTS_WINDOW_S = 60.0
_STATS_S = 5.0
_LISTEN_S = 5.0
"""How long a port is paused for a worker that does not listen there yet."""
_Place: TypeAlias = tuple[int, int, int]
"""Where a listener is: address, port, and the flags that belong to the key."""
_TYPES = RssType.TCP_IPV4 | RssType.TCP_IPV6
_ARP_OPERATION = ETHERNET.size + ARP.byte_offset("oper")
_ARP_REPLY = b"\0\2"
_ICMP_ERRORS = frozenset((3, 11, 12))  # RFC 792: unreachable, time exceeded, parameter problem
_ICMPV6_FOR_ALL = frozenset((1, 2, 3, 4, 136))  # RFC 4443: errors; RFC 4861: neighbour advertisement


def run(
    main: Main,
    device: str,
    addresses: Iterable[str],
    *,
    workers: int,
    restart: bool = False,
    started: Callable[[Workers], None] | None = None,
    **options: Any,
) -> int:
    """Run `main(nic)` in so many processes until all have returned, or until SIGTERM or SIGINT ends them in order.

    started: called in this process when every worker is at work. Further arguments and exceptions are those of `Workers`.
    Returns the exit status for the program: 0, or 1 if a worker has failed.
    """
    return asyncio.run(_run(Workers(main, device, addresses, workers=workers, restart=restart, **options), started))


class Stop:
    """SIGINT and SIGTERM cancel the task that makes this, once. `asked`: whether they, or `now`, have."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.now)

    def now(self) -> None:
        """As the signals do."""
        if not self.asked:
            self.asked = True
            self._task.cancel()


async def _run(workers: Workers, started: Callable[[Workers], None] | None) -> int:
    stop = Stop()
    try:
        async with workers:
            if started is not None:
                started(workers)
            await workers.wait()
    except asyncio.CancelledError:
        if not stop.asked:
            raise
    return int(workers.failed)


class _Listener:
    """An entry of the listen table, and who has it.

    fields: of the LISTEN command. users: number of a worker -> whether it has paused the port. missing: workers that will listen
    there in a moment. A SYN is answered before it is known to whom the connection goes, and the client of one that nobody takes may wait for
    ever; so the port is paused while one is missing, and while all users have paused it.
    """

    def __init__(self, fields: dict[str, int], missing: set[int]) -> None:
        self.index = 0
        self.fields = fields
        self.users: dict[int, bool] = {}
        self.missing = missing
        self.told = False
        """Whether the NIC's entry is paused."""

    @property
    def paused(self) -> bool:
        return bool(self.missing) or all(self.users.values())

    def command(self, opcode: CommandOpcode) -> bytes:
        """A command for this entry."""
        flags = self.fields["flags"] | (ListenFlag.PAUSED if self.paused else 0)
        return LISTEN_COMMAND.pack(**{**self.fields, "opcode": opcode, "flags": flags})


class _State(enum.Enum):
    STARTING = 1
    RUNNING = 2
    ENDED = 3


class _Worker:
    """A worker as the owner sees it; a successor is another one."""

    def __init__(self, index: int, pid: int, link: socket.socket) -> None:
        self.index = index
        self.pid = pid
        self.link = link
        self.pidfd = os.pidfd_open(pid)
        self.state = _State.STARTING
        self.changed = asyncio.Event()
        self.exit_code: int | None = None
        self.asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def __str__(self) -> str:
        return f"worker {self.index} (process {self.pid})"


class Workers:
    """Worker processes on one device, and this process, which owns it. Use in `async with`.

    main: runs in each worker with its `Nic`; the worker ends when it returns. device, addresses: as for `Nic`.
    restart: put another in the place of a worker that has died (not of one whose `main` has returned); after five deaths
    in a minute no more. A device needs a queue more than there are workers; `sim:` gets as many, unless `queues=` is given. key: of the hash, 40 bytes; random if None. memory: bytes per worker that the
    device can reach. Further options are those of `Nic`.

    Raises `ValueError` for numbers that cannot be, `DeviceError` when the device has too few queues or no RSS, or when a
    worker does not start.
    """

    def __init__(
        self,
        main: Main,
        device: Device | str,
        addresses: Iterable[str],
        *,
        workers: int,
        restart: bool = False,
        key: bytes | None = None,
        memory: int = MEMORY_BYTES,
        **options: Any,
    ) -> None:
        if not isinstance(workers, int) or not 1 <= workers < QUEUES_MAX:
            raise ValueError(f"workers must be from 1 to {QUEUES_MAX - 1}, not {workers!r}")
        self._main = main
        self._count = workers
        self._restart = restart
        self._key = os.urandom(RSS_KEY_BYTES) if key is None else key
        self._words = key_words(self._key)
        self._memory = memory
        self._addresses = list(addresses)
        self._options = options
        if isinstance(device, str):
            device = _with_queues(device, workers)
        self.nic = Nic(device, self._addresses, queue_index=workers, **options)
        self.nic.on_open = self._check
        """Of this process: neighbours and echo."""
        self._workers: list[_Worker] = []
        self._table: list[int] = []
        self._listeners: dict[_Place, _Listener] = {}
        self._expecting: dict[int, int] = {}
        self._listening = asyncio.Lock()
        self._ids = itertools.count(1)
        self._deaths: list[float] = []
        self._stopping = False
        self._over = asyncio.Event()
        self._ends: set[asyncio.Task[None]] = set()
        self.failed = False
        """A worker has ended other than by returning or being stopped."""

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that there are, by queue; 0 where there is none."""
        return [worker.pid if worker.state is not _State.ENDED else 0 for worker in self._workers]

    async def __aenter__(self) -> Workers:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # -- begin and end ---------------------------------------------------------------------

    async def start(self) -> None:
        """Open the device, start the workers, and return when all are at work."""
        self._loop = asyncio.get_running_loop()
        await self.nic.start()
        try:
            device = self.nic.device
            self.nic.on_frame = self._frame
            self._write_key()
            self._write_table(spread_evenly(range(self._count)))
            device.registers.RSS.control.write(types=_TYPES)
            self._workers = [self._fork(index) for index in range(self._count)]
            await asyncio.gather(*(self._started(worker) for worker in self._workers))
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> None:
        """Wait until all workers have ended. Raises `DeviceError` when the device is lost."""
        await self.nic.wait_for(self._over)

    async def stop(self) -> None:
        """End the workers in order, by force those that take too long, and close the device."""
        self._stopping = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            running = [worker for worker in self._workers if worker.state is not _State.ENDED]
            if not running:
                break
            for worker in running:
                if number == signal.SIGKILL:
                    log.error("%s does not stop: killed", worker)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(self._ended(worker) for worker in running)), _STOP_S)
        if self._ends:
            await asyncio.wait(self._ends)
        await self.nic.close()

    async def _started(self, worker: _Worker) -> None:
        try:
            await asyncio.wait_for(self._until(worker, _State.STARTING), _START_S)
        except TimeoutError:
            raise DeviceTimeoutError(f"{worker} was not at work within {_START_S:g} s.") from None
        if worker.state is _State.ENDED:
            raise DeviceError(f"{worker} ended at its start, with status {worker.exit_code}.")

    async def _ended(self, worker: _Worker) -> None:
        while worker.state is not _State.ENDED:
            await self._until(worker, worker.state)

    @staticmethod
    async def _until(worker: _Worker, old: _State) -> None:
        """Wait until the state is another one."""
        while worker.state is old:
            worker.changed.clear()
            await worker.changed.wait()

    # -- the device ------------------------------------------------------------------------

    def _check(self, device: Device) -> None:
        """Raise `DeviceError` unless there is a queue for each worker and one for us, and the NIC can spread connections."""
        device.require(Feature.RSS)
        _check_queues(device.transport.description, device.identity.queues, self._count)

    def _write_key(self) -> None:
        block = self.nic.device.registers.RSS
        for number, word in enumerate(self._words):
            getattr(block, f"key{number}").set(word)

    def _write_table(self, table: list[int]) -> None:
        """Write what differs, one entry at a time, and tell the workers."""
        entry = self.nic.device.registers.RSS.entry
        for index, queue in enumerate(table):
            if not self._table or self._table[index] != queue:
                entry.write(index=index, queue=queue)
        self._table = table
        for worker in self._workers:
            self._send(worker, bytes([Kind.TABLE, *table]))

    async def _stop_queue(self, index: int) -> None:
        """Switch a dead worker's queue off; its memory is not touched any more afterwards, but for flows that it closes."""
        queue = self.nic.device.registers.QUEUE[index]
        queue.control.write(enable=0)
        deadline = time.monotonic() + WATCHDOG_S
        while not queue.status.read()["idle"]:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"Queue {index} did not become idle within {WATCHDOG_S:g} s.")
            await asyncio.sleep(0.002)

    # -- processes -------------------------------------------------------------------------

    def _fork(self, index: int) -> _Worker:
        shared = self.nic.device.transport.share(self._memory)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal between the fork and the worker's own handlers would find those of this process.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        pid = os.fork()
        if not pid:
            self._become_worker(index, shared, ours, theirs, masked)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        shared.close()
        theirs.close()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_BYTES_MAX)
        worker = _Worker(index, pid, ours)
        self._loop.add_reader(ours, self._receive, worker)
        self._loop.add_reader(worker.pidfd, self._reap, worker)
        self._send(worker, bytes([Kind.TABLE, *self._table]))
        return worker

    def _become_worker(
        self, index: int, shared: Transport, ours: socket.socket, theirs: socket.socket, masked: set[int | signal.Signals]
    ) -> None:
        """In the new process; never returns, so that nothing of the owner's is closed or cleaned up here."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            # A worker sees its owner's end by the end of its link, so nobody else may hold the other end. (Not closed: the
            # objects that they belong to would later close other files of these numbers.)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for link in (ours, *(worker.link for worker in self._workers if worker.state is not _State.ENDED)):
                os.dup2(null, link.fileno(), inheritable=False)
            os.close(null)
            status = asyncio.run(self._work(index, shared, theirs, masked))
        except BaseException:
            log.exception("worker %d failed", index)
        finally:
            with contextlib.suppress(BaseException):
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    async def _work(self, index: int, shared: Transport, link: socket.socket, masked: set[int | signal.Signals]) -> int:
        """A worker's life."""
        stop = Stop()
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        ports = (self._options.get("tcp") or TcpSettings()).ports
        sharing = Sharing(link, index, self._key, ports)
        sharing.on_end = stop.now
        sharing.start()
        options = {**self._options, "mac": self.nic.mac, "announce": False}
        nic = Nic(Device(shared, reset=False), self._addresses, queue_index=index, sharing=sharing, **options)
        try:
            async with nic:
                sharing.ready()
                await self._main(nic)
        except asyncio.CancelledError:
            if not stop.asked:
                raise
        finally:
            sharing.close()
        return 0

    def _reap(self, worker: _Worker) -> None:
        self._loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        self._receive(worker)  # what it has said last
        self._loop.remove_reader(worker.link)
        worker.link.close()
        _, status = os.waitpid(worker.pid, 0)
        worker.exit_code = os.waitstatus_to_exitcode(status)
        was, worker.state = worker.state, _State.ENDED
        worker.changed.set()
        for future in worker.asked.values():
            if not future.done():
                future.set_exception(DeviceError(f"{worker} has ended."))
        task = self._loop.create_task(self._after(worker, was))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _after(self, worker: _Worker, was: _State) -> None:
        """A worker has ended."""
        code = worker.exit_code
        if code and not self._stopping:
            self.failed = True
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            log.error("%s %s", worker, how)
        try:
            again = bool(code) and was is _State.RUNNING and not self._stopping and self._may_restart()
            if not self._stopping and not again:
                self._give_away(worker.index)
            await self._unlisten(worker, again)
            await self._stop_queue(worker.index)
            if again and not self._stopping:
                successor = self._workers[worker.index] = self._fork(worker.index)
                log.warning("%s takes the place of process %d", successor, worker.pid)
                self._expect(worker.index)
                return
        except DeviceError as error:
            log.error("%s", error)
        if all(each.state is _State.ENDED for each in self._workers):
            self._over.set()

    def _may_restart(self) -> bool:
        if not self._restart:
            return False
        now = time.monotonic()
        self._deaths = [when for when in self._deaths if now - when < _RESTARTS_WINDOW_S] + [now]
        if len(self._deaths) <= _RESTARTS_MAX:
            return True
        log.error("more than %d workers have died within %g s: no more are started", _RESTARTS_MAX, _RESTARTS_WINDOW_S)
        return False

    def _give_away(self, index: int) -> None:
        """Divide a worker's entries of the indirection table among those that are left."""
        left = [worker.index for worker in self._workers if worker.state is not _State.ENDED]
        if left:
            heirs = itertools.cycle(left)
            self._write_table([next(heirs) if queue == index else queue for queue in self._table])

    # -- messages --------------------------------------------------------------------------

    def _send(self, worker: _Worker, message: bytes) -> None:
        """To a worker; one that does not listen misses it."""
        if worker.state is not _State.ENDED:
            with contextlib.suppress(OSError):
                worker.link.send(message)

    def _receive(self, worker: _Worker) -> None:
        while True:
            try:
                message = worker.link.recv(MESSAGE_BYTES_MAX)
            except OSError:
                return
            if not message:
                self._loop.remove_reader(worker.link)  # `_reap` does the rest
                return
            if message[0] == Kind.READY:
                worker.state = _State.RUNNING
                worker.changed.set()
            elif message[0] == Kind.COMMAND:
                task = self._loop.create_task(self._command(worker, message))
                worker.tasks.add(task)
                task.add_done_callback(worker.tasks.discard)
            elif message[0] == Kind.TELL:
                number = int.from_bytes(message[1:5], "little")
                future = worker.asked.get(number)
                if future is not None and not future.done():
                    future.set_result(json.loads(message[5:]))

    def _frame(self, frame: memoryview, port: int) -> None:
        """From our queue: what workers want to know of as well."""
        if _is_for_all(frame):
            message = bytes([Kind.FRAME, port]) + frame
            for worker in self._workers:
                self._send(worker, message)

    # -- the listen table ------------------------------------------------------------------

    async def _command(self, worker: _Worker, message: bytes) -> None:
        number, command = unpack_command(message)
        status: int
        async with self._listening:
            try:
                status, value = await self._listen(worker.index, LISTEN_COMMAND.unpack(command))
            except CommandRefusedError as error:
                status, value = error.status, 0
            except DeviceError as error:
                log.error("%s", error)
                return
        self._send(worker, pack_answer(number, status, value))

    async def _listen(self, index: int, fields: dict[str, int]) -> tuple[Status, int]:
        """Carry out a command for a worker: the table has one entry for all that listen at one place."""
        flags = fields["flags"]
        place = (fields["address"], fields["port"], flags & (ListenFlag.IPV6 | ListenFlag.ANY_ADDRESS))
        listener = self._listeners.get(place)
        opcode = fields["opcode"]
        if opcode == CommandOpcode.LISTEN:
            fields = {**fields, "queue": 0, "flags": flags & ~ListenFlag.PAUSED | ListenFlag.SPREAD, "tag": 0}
            if listener is None:
                return await self._new_listener(index, place, fields)
            if index in listener.users or listener.fields != fields:
                return Status.DUPLICATE, 0
            listener.missing.discard(index)
            listener.users[index] = False
        elif listener is None or index not in listener.users:
            return Status.NOT_FOUND, 0
        elif opcode == CommandOpcode.UNLISTEN:
            del listener.users[index]
        else:
            listener.users[index] = bool(flags & ListenFlag.PAUSED)
        await self._apply(place, listener)
        return Status.OK, listener.index

    async def _new_listener(self, index: int, place: _Place, fields: dict[str, int]) -> tuple[Status, int]:
        missing = {worker.index for worker in self._workers if worker.state is not _State.ENDED} - {index}
        listener = _Listener(fields, missing)
        listener.users[index] = False
        listener.told = listener.paused
        listener.index = (await self.nic.command(listener.command(CommandOpcode.LISTEN))).value
        self._listeners[place] = listener
        for other in missing:
            self._expect(other)
        return Status.OK, listener.index

    async def _apply(self, place: _Place, listener: _Listener) -> None:
        """Tell the NIC what has become of an entry."""
        if not listener.users and not listener.missing:
            del self._listeners[place]
            await self.nic.command(listener.command(CommandOpcode.UNLISTEN))
        elif listener.paused != listener.told:
            listener.told = listener.paused
            await self.nic.command(listener.command(CommandOpcode.LISTEN_UPDATE))

    async def _unlisten(self, worker: _Worker, again: bool) -> None:
        """A worker that has ended listens nowhere. again: it will have a successor."""
        if worker.tasks:
            await asyncio.wait(worker.tasks)
        async with self._listening:
            for place, listener in list(self._listeners.items()):
                listener.missing.discard(worker.index)
                if listener.users.pop(worker.index, None) is not None and again:
                    listener.missing.add(worker.index)
                await self._apply(place, listener)

    def _expect(self, index: int) -> None:
        """Wait for a worker to listen where it is missing, within reason."""
        self._expecting[index] = self._expecting.get(index, 0) + 1
        self._loop.call_later(_LISTEN_S, self._give_up, index)

    def _give_up(self, index: int) -> None:
        self._expecting[index] -= 1
        if not self._expecting[index] and not self._stopping:
            task = self._loop.create_task(self._not_coming(index))
            self._ends.add(task)
            task.add_done_callback(self._ends.discard)

    async def _not_coming(self, index: int) -> None:
        with contextlib.suppress(DeviceError):  # its loss is told by `wait`
            async with self._listening:
                for place, listener in list(self._listeners.items()):
                    listener.missing.discard(index)
                    await self._apply(place, listener)

    # -- readings --------------------------------------------------------------------------

    async def stats(self) -> dict[str, dict[str, Any]]:
        """`Nic.stats` of this process; and under "worker N" what is that worker's alone."""
        answer = self.nic.stats()
        for worker in self._workers:
            if worker.state is _State.RUNNING:
                with contextlib.suppress(DeviceError, TimeoutError):
                    answer[f"worker {worker.index}"] = await asyncio.wait_for(self._ask(worker), _STATS_S)
        return answer

    async def _ask(self, worker: _Worker) -> dict[str, Any]:
        number = next(self._ids)
        future = worker.asked[number] = self._loop.create_future()
        try:
            self._send(worker, bytes([Kind.ASK]) + number.to_bytes(4, "little"))
            return await future
        finally:
            del worker.asked[number]


def _check_queues(name: str, queues: int, workers: int) -> None:
    if queues <= workers:
        need = "1 worker needs" if workers == 1 else f"{workers} workers need"
        raise DeviceError(f"{need} {workers + 1} queues (one is of the process that has the device), {name} has {queues}.")


def _with_queues(spec: str, workers: int) -> str:
    """The specification of a simulator with the queues that it needs, unless it says how many it has."""
    scheme, path, options = split_spec(spec)
    if scheme != "sim":
        return spec
    if "queues" in options:
        if options["queues"].isdecimal():
            _check_queues(spec, int(options["queues"]), workers)
        return spec
    queues = max(1 << workers.bit_length(), SIMULATED_QUEUES)
    if queues == SIMULATED_QUEUES:
        return spec
    return f"sim:{path}?{urlencode({**options, 'queues': str(queues)})}"


def _is_for_all(frame: memoryview) -> bool:
    """Whether a frame may answer a worker's question or report on a worker's packet."""
    if len(frame) < ETHERNET.size + IPV4.size + 1:
        return False
    ethertype = int.from_bytes(frame[ETHERNET.byte_offset("ethertype") : ETHERNET.size], "big")
    if ethertype == EtherType.ARP:
        return bytes(frame[_ARP_OPERATION : _ARP_OPERATION + 2]) == _ARP_REPLY
    if ethertype == EtherType.IPV4:
        header = ETHERNET.size + 4 * (frame[ETHERNET.size] & 15)
        protocol = frame[ETHERNET.size + IPV4.byte_offset("protocol")]
        return protocol == IPProtocol.ICMP and len(frame) > header and frame[header] in _ICMP_ERRORS
    if ethertype == EtherType.IPV6:
        header = ETHERNET.size + IPV6.size
        following = frame[ETHERNET.size + IPV6.byte_offset("next_header")]
        return following == IPProtocol.ICMPV6 and len(frame) > header and frame[header] in _ICMPV6_FOR_ALL
    return False
