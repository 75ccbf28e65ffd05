"""Random traffic through the whole core against the plain-Python model of the setup rules.

The model reads the same bytes as the NIC and foretells every completion, reply and counter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from acceltcp.abi.messages import CommandOpcode, Status
from acceltcp.abi.wire import ETHERNET_MIN_FRAME
from tests.hw.tcp.model import ListenModel, SetupModel, facts_of_frame, syn_ack_frame

from .bench import TB, core_test
from .driver import Listener
from .frames import (
    CLIENT4,
    CLIENT6,
    MACS,
    SERVER4,
    SERVER6,
    Client,
    as_number,
    assert_frames_equal,
    pad,
    plain_frame,
    show,
    udp_frame,
)

BATCH = 50


class Traffic:
    """Makes frames; remembers the replies that the model foretold, to answer some of them."""

    def __init__(self, tb: TB) -> None:
        self.tb, self.rng = tb, tb.rng
        self.opened: list[tuple[Client, dict[str, int]]] = []

    def client(self, port: int) -> Client:
        rng = self.rng
        v6 = rng.random() < 0.5
        options = rng.sample(
            [("MSS", rng.choice((64, 536, 1220, 1460, 8940, 65535))), ("SAckOK", b""), ("WScale", rng.randrange(16)),
             ("Timestamp", (rng.getrandbits(32), 0)), ("NOP", None), ("NOP", None), (200, b"??")],
            rng.randrange(6),
        )  # fmt: skip
        return Client(
            rng.randrange(1, 65536),
            ipv6=v6,
            vlan=rng.choice((None, None, rng.getrandbits(16))),
            options=options,
            iss=rng.choice((0, 0xFFFF_FFFF, rng.getrandbits(32))),
            server_port=rng.choice((80, 80, 81, 82, 83)),
            dst=rng.choice((SERVER6, "2001:db8::ffff") if v6 else (SERVER4, "192.0.2.200")),
            src=CLIENT6 if v6 else CLIENT4,
            dst_mac=MACS[port],
            ecn=rng.random() < 0.3,
        )

    def acknowledge(self) -> bytes:
        client, reply = self.rng.choice(self.opened)
        options: Any = ()
        if reply["timestamps"]:
            options = [("NOP", None), ("NOP", None), ("Timestamp", (self.rng.getrandbits(32), reply["tsval"]))]
        flags = self.rng.choice(("A", "A", "PA", "FA", "RA", "SA", "PAU"))
        data = self.rng.randbytes(self.rng.choice((0, 0, 1, 40)))
        return client.segment(flags, client.iss + 1, reply["seq"] + 1, options=options, data=data)

    def mutate(self, frame: bytes) -> bytes:
        """A few bytes past the MAC addresses changed, or the frame cut."""
        changed = bytearray(frame)
        for _ in range(self.rng.randrange(1, 4)):
            at = self.rng.randrange(12, min(len(changed), 80))
            changed[at] = self.rng.choice((0, 0xFF, changed[at] ^ 1 << self.rng.randrange(8)))
        cut = self.rng.randrange(ETHERNET_MIN_FRAME, len(changed) + 1)
        return bytes(changed[:cut] if self.rng.random() < 0.3 else changed)

    def frame(self, port: int) -> tuple[bytes, Client | None]:
        """A frame, and its client if it is a proper SYN."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            client = self.client(port)
            return client.syn(), client
        if kind < 0.65 and self.opened:
            return self.acknowledge(), None
        if kind < 0.75:
            client = self.client(port)
            flags = rng.choice(("S", "SF", "SR", "A", "R", "", "SA", "F", "SEC"))
            return client.segment(flags, rng.getrandbits(32), rng.getrandbits(32), data=rng.randbytes(5)), None
        if kind < 0.9:
            return self.mutate(self.client(port).syn(data=rng.randbytes(rng.randrange(30)))), None
        if kind < 0.95:
            return udp_frame(rng, rng.randrange(100), ipv6=rng.random() < 0.5), None
        return plain_frame(rng, rng.randrange(60, 200), dst_mac=rng.choice((*MACS, 0xFFFF_FFFF_FFFF))), None


async def listeners(tb: TB, model: SetupModel) -> None:
    """The same listeners for both."""
    last = min(3, tb.config.queues - 1)
    for listener in (
        Listener(80, ecn=True, queue=0),
        Listener(80, address=as_number(SERVER4), queue=1, mss=8940, wscale=14, window=1),
        Listener(80, ipv6=True, queue=last, mss=1440, ecn=True),
        Listener(81, defer=True, queue=1),
        Listener(81, ipv6=True, defer=True, queue=last, wscale=0, spread=True),
        Listener(82, paused=True, queue=last),
    ):
        made = await tb.listen(listener)
        status, index = model.listeners.command(
            CommandOpcode.LISTEN,
            address=listener.address or 0,
            port=listener.port,
            flags=listener.flags,
            queue=listener.queue,
            mss=listener.mss,
            window=listener.window,
            wscale=listener.wscale,
        )
        assert (status, index) == (Status.OK, made.index)


@core_test(timeout_us=6000)
async def against_the_model(dut):
    tb = await TB.start(dut, queues=0)
    for number in range(min(4, tb.config.queues)):
        await tb.queue(number, buffers=0, rx=6, completions=6)
    rng = tb.rng
    model = SetupModel(ListenModel(tb.config.listeners, tb.config.queues), tb.config.ports)
    model.mac = list(MACS[: tb.config.ports])
    await listeners(tb, model)
    await tb.write("TIME", "ts_ticks", 1)
    await tb.write("TIME", "epoch_ticks", 5)
    secret = rng.randbytes(16)
    await tb.set_secret(secret)
    model.key_current = model.key_previous = secret
    staged: bytes | None = None
    traffic = Traffic(tb)
    model.rss.key = rng.randbytes(40)
    model.rss.table = [rng.randrange(len(tb.queues)) for _ in model.rss.table]
    await tb.set_rss(model.rss.key, model.rss.table)
    names = [name for name in await tb.counters() if name.startswith(("setup_", "rx_drop_"))]
    for queue in tb.queues.values():
        await queue.refill(BATCH, 1600)

    for batch in range(10):
        # Time passes, secrets change, switches are thrown.
        if batch:
            await tb.tick(rng.choice((1, 4, 5)))
        epoch, model.ts_clock = await tb.clocks()
        if epoch != model.epoch:
            # Keys change at an epoch's end only; more than one epoch later both are the newer one.
            for _ in range(min(2, epoch - model.epoch)):
                model.key_previous = model.key_current
                model.key_current, staged = staged or model.key_current, None
            model.epoch = epoch
        if batch == 2:
            staged = rng.randbytes(16)
            await tb.set_secret(staged, now=False)
        model.rss.types = rng.choice((0, 15, rng.randrange(16)))
        await tb.write("RSS", "control", model.rss.types)
        model.default_queue = rng.randrange(len(tb.queues))
        await tb.write("CONTROL", "default_queue", model.default_queue)
        for port in range(tb.config.ports):
            model.promiscuous[port], model.keep_bad[port] = rng.random() < 0.3, rng.random() < 0.3
            await tb.write("PORT", "config", model.promiscuous[port] | model.keep_bad[port] << 1, port)
        await tb.settle()
        before = await tb.counters(*names)

        expected: Counter[str] = Counter()
        replies: dict[int, list[bytes]] = defaultdict(list)
        to_host: dict[tuple[int, int], list[tuple[bytes, dict[str, int]]]] = defaultdict(list)
        for _ in range(BATCH):
            port = rng.randrange(tb.config.ports)
            frame, client = traffic.frame(port)
            outcome = model.process(facts_of_frame(frame, port))
            expected.update(outcome.counters)
            if outcome.reply:
                replies[port].append(pad(syn_ack_frame(outcome.reply)))
                if client:
                    traffic.opened.append((client, outcome.reply))
            if outcome.keep:
                to_host[outcome.queue, port].append((frame, outcome.completion))
            tb.rx[port].send(frame)
        for port, wanted in replies.items():
            for frame in wanted:
                assert_frames_equal(await tb.frame(port), frame)
        for number, queue in tb.queues.items():
            count = sum(len(frames) for (to, _), frames in to_host.items() if to == number)
            got = await queue.receive(count)
            for port in range(tb.config.ports):
                mine = [received for received in got if received.port == port]
                for received, (frame, completion) in zip(mine, to_host[number, port], strict=True):
                    assert received.data == frame
                    have = received.completion
                    wrong = {name: (have[name], want) for name, want in completion.items() if have[name] != want}
                    assert not wrong, f"(NIC, model): {wrong} for {show(frame)}"
                    assert received.status == Status.OK
            await queue.refill(count, 1600)
        moved = await tb.changes(before)
        assert moved == dict(expected)
        tb.assert_nothing_sent()
    await tb.end()
