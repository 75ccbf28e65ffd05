"""The neighbour cache against RFC 4861: its table of states, its clocks, and strangers who want in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from acceltcp.host.net.neighbours import NeighbourCache, NeighbourSettings, NeighbourState

OURS = bytes.fromhex("020000000002")
ONE, TWO = bytes.fromhex("020000000001"), bytes.fromhex("020000000011")
V4, V6 = bytes([10, 0, 0, 1]), bytes.fromhex("fd000000000000000000000000000001")
ASKER = {4: bytes([10, 0, 0, 2]), 16: bytes.fromhex("fd000000000000000000000000000002")}
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, PERMANENT = NeighbourState
BOTH = pytest.mark.parametrize("address", [V4, V6], ids=["v4", "v6"])


class Link:
    """A cache, the frames it sent, the calls it made."""

    def __init__(self, **options):
        self.now = 1000.0
        self.frames: list[Ether] = []
        self.calls: list[tuple[str, bytes]] = []
        static = options.pop("static", None)
        self.cache = NeighbourCache(
            OURS,
            lambda frame: self.frames.append(Ether(frame)),
            lambda address: self.calls.append(("found", address)),
            lambda address: self.calls.append(("failed", address)),
            NeighbourSettings(**options),
            static,
        )

    def resolve(self, address):
        return self.cache.resolve(address, ASKER[len(address)], self.now)

    def state(self, address):
        return self.cache.state(address, self.now)

    def run(self, seconds):
        """Let time pass, event by event."""
        end = self.now + seconds
        for _ in range(1000):
            due = self.cache.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.cache.run_timers(self.now)
        else:
            raise AssertionError("timers never come to rest")
        self.now = end

    def bring(self, address, state, mac=ONE):
        """Take an address to a state, by the shortest way through the RFC."""
        self.resolve(address)
        if state is not INCOMPLETE:
            self.cache.advertised(address, mac, state is REACHABLE, False, self.now)
        if state in (DELAY, PROBE):
            self.resolve(address)
        if state is PROBE:
            self.run(5.0)
        assert self.state(address) is state
        self.calls.clear()
        self.frames.clear()


# -- appendix C ----------------------------------------------------------------------------

KNOWN = (REACHABLE, STALE, DELAY, PROBE)
# State, what the advertisement says (solicited, override, MAC), new state, MAC then. RFC 4861 section 7.2.5, appendix C.
TABLE = [
    *((INCOMPLETE, (False, o, ONE), STALE, ONE) for o in (False, True)),
    *((INCOMPLETE, (True, o, ONE), REACHABLE, ONE) for o in (False, True)),
    *((INCOMPLETE, (s, o, None), INCOMPLETE, None) for s in (False, True) for o in (False, True)),
    *((state, (True, False, ONE), REACHABLE, ONE) for state in KNOWN),
    (REACHABLE, (True, False, TWO), STALE, ONE),
    *((state, (True, False, TWO), state, ONE) for state in (STALE, DELAY, PROBE)),
    *((state, (True, True, ONE), REACHABLE, ONE) for state in KNOWN),
    *((state, (True, True, TWO), REACHABLE, TWO) for state in KNOWN),
    *((state, (False, False, ONE), state, ONE) for state in KNOWN),
    # Section 7.2.5 I: the O flag is clear and the address differs, whatever S says.
    (REACHABLE, (False, False, TWO), STALE, ONE),
    *((state, (False, False, TWO), state, ONE) for state in (STALE, DELAY, PROBE)),
    *((state, (False, True, ONE), state, ONE) for state in KNOWN),
    *((state, (False, True, TWO), STALE, TWO) for state in KNOWN),
    # Section 7.2.5 II: no address was supplied.
    *((state, (True, o, None), REACHABLE, ONE) for state in KNOWN for o in (False, True)),
    *((state, (False, o, None), state, ONE) for state in KNOWN for o in (False, True)),
]


@pytest.mark.parametrize(("before", "said", "after", "mac"), TABLE)
def test_advertisement(before, said, after, mac):
    link = Link()
    link.bring(V6, before)
    solicited, override, told = said
    link.cache.advertised(V6, told, solicited, override, link.now)
    assert link.state(V6) is after
    assert link.cache.mac(V6) == mac
    expected = (before is INCOMPLETE and mac is not None) or (before is not INCOMPLETE and mac == TWO)
    assert link.calls == ([("found", V6)] if expected else [])
    header = link.resolve(V6)
    assert header == (None if mac is None else mac + OURS + bytes.fromhex("86dd"))


# Appendix C, "NS, RS, RA, Redirect".
@pytest.mark.parametrize(
    ("before", "told", "after", "mac"),
    [
        (None, ONE, STALE, ONE),
        (INCOMPLETE, ONE, STALE, ONE),
        *((state, ONE, state, ONE) for state in KNOWN),
        *((state, TWO, STALE, TWO) for state in KNOWN),
    ],
)
def test_solicitation_from_a_neighbour(before, told, after, mac):
    link = Link()
    if before is not None:
        link.bring(V6, before)
    link.cache.asked(V6, told, link.now)
    assert link.state(V6) is after
    assert link.cache.mac(V6) == mac
    moved = before is not None and (before is INCOMPLETE or told == TWO)
    assert link.calls == ([("found", V6)] if moved else [])


@pytest.mark.parametrize("before", KNOWN)
def test_tcp_confirms(before):
    link = Link()
    link.bring(V6, before)
    link.cache.confirm(V6, link.now)
    assert link.state(V6) is REACHABLE
    link.run(10)
    assert not link.frames and not link.calls


def test_tcp_cannot_confirm_what_has_no_address():
    link = Link()
    link.cache.confirm(V6, link.now)
    assert link.state(V6) is None
    link.bring(V6, INCOMPLETE)
    link.cache.confirm(V6, link.now)
    assert link.state(V6) is INCOMPLETE


# -- time ----------------------------------------------------------------------------------


def questions(link, address, unicast=None):
    """Check that all frames ask for an address; how many there are."""
    for frame in link.frames:
        assert frame.src == "02:00:00:00:00:02"
        if len(address) == 4:
            assert (frame.dst, frame[ARP].op) == (unicast or "ff:ff:ff:ff:ff:ff", 1)
            assert (frame[ARP].hwsrc, frame[ARP].psrc, frame[ARP].pdst) == ("02:00:00:00:00:02", "10.0.0.2", "10.0.0.1")
        else:
            assert frame.dst == (unicast or "33:33:ff:00:00:01")
            assert (frame[IPv6].src, frame[IPv6].dst) == ("fd00::2", "fd00::1" if unicast else "ff02::1:ff00:1")
            assert (frame[IPv6].hlim, frame[ICMPv6ND_NS].tgt) == (255, "fd00::1")
            assert frame[ICMPv6NDOptSrcLLAddr].lladdr == "02:00:00:00:00:02"
            again = frame.copy()
            del again[ICMPv6ND_NS].cksum
            assert bytes(again) == bytes(frame)
    return len(link.frames)


@BOTH
def test_nobody_answers(address):
    link = Link()
    assert link.resolve(address) is None
    for asked in (1, 2, 3):
        assert questions(link, address) == asked
        assert link.resolve(address) is None  # asks no sooner
        link.run(0.99)
        assert questions(link, address) == asked and not link.calls
        link.run(0.01)
    assert questions(link, address) == 3
    assert link.calls == [("failed", address)]
    assert link.state(address) is None and len(link.cache) == 0 and link.cache.next_deadline() is None
    assert link.resolve(address) is None  # and again from the beginning
    assert questions(link, address) == 4


@BOTH
def test_answer_to_the_last_question(address):
    link = Link()
    link.resolve(address)
    link.run(2.9)
    if len(address) == 4:
        link.cache.arp(address, ONE, True, link.now)
    else:
        link.cache.advertised(address, ONE, True, True, link.now)
    assert link.calls == [("found", address)] and link.state(address) is REACHABLE
    assert link.resolve(address)[:12] == ONE + OURS
    link.run(10)
    assert len(link.frames) == 3


@BOTH
def test_a_neighbour_that_is_used_is_probed_when_tcp_says_nothing(address):
    link = Link()
    link.bring(address, REACHABLE)
    reachable = link.cache.reachable_time
    assert 15 <= reachable <= 45
    link.run(reachable - 0.01)
    assert link.state(address) is REACHABLE
    link.run(0.02)
    assert link.state(address) is STALE
    link.run(3600)
    assert link.state(address) is STALE and not link.frames  # nobody needs it, nobody asks
    assert link.resolve(address) is not None
    assert link.state(address) is DELAY
    link.run(4.99)
    assert not link.frames
    for asked in (1, 2, 3):
        link.run(0.01 if asked == 1 else 1)
        assert link.state(address) is PROBE
        assert questions(link, address, "02:00:00:00:00:01") == asked
        assert link.resolve(address) is not None
    link.run(1)
    assert link.calls == [("failed", address)] and link.state(address) is None


@BOTH
def test_a_probe_is_answered(address):
    link = Link()
    link.bring(address, PROBE)
    if len(address) == 4:
        link.cache.arp(address, ONE, True, link.now)
    else:
        link.cache.advertised(address, ONE, True, True, link.now)
    assert link.state(address) is REACHABLE
    link.run(10)
    assert not link.frames and not link.calls


def test_reachable_time_varies():
    times = {Link().cache.reachable_time for _ in range(50)}
    assert len(times) > 10 and all(15 <= time <= 45 for time in times)


# -- ARP -----------------------------------------------------------------------------------


def test_an_arp_reply_that_nobody_asked_for_confirms_nothing():
    link = Link()
    for state in (STALE, DELAY):
        link.bring(V4, state)
        link.cache.arp(V4, ONE, True, link.now)
        assert link.state(V4) is state


def test_arp_of_another_mac_moves_the_neighbour():
    link = Link()
    link.bring(V4, REACHABLE)
    link.run(0.5)
    link.cache.arp(V4, TWO, False, link.now)  # two answers to one question: the first counts
    assert link.cache.mac(V4) == ONE and link.state(V4) is REACHABLE and link.cache.stats["contradictions"] == 1
    link.run(0.6)
    link.cache.arp(V4, TWO, False, link.now)
    assert link.cache.mac(V4) == TWO and link.state(V4) is STALE and link.calls == [("found", V4)]


# -- what nothing changes --------------------------------------------------------------------


@BOTH
def test_static(address):
    link = Link(static={address: ONE}, limit=1)
    kind = bytes.fromhex("0800" if len(address) == 4 else "86dd")
    assert link.resolve(address) == ONE + OURS + kind
    link.cache.advertised(address, TWO, True, True, link.now)
    link.cache.arp(address, TWO, True, link.now)
    link.cache.asked(address, TWO, link.now)
    link.cache.confirm(address, link.now)
    for other in range(5):
        link.resolve(bytes([10, 0, 1, other]))
    link.run(3600)
    assert link.state(address) is PERMANENT and link.cache.mac(address) == ONE
    assert ("found", address) not in link.calls and ("failed", address) not in link.calls


# -- bounds ----------------------------------------------------------------------------------


def test_answers_that_nobody_asked_for_create_nothing():
    link = Link()
    for number in range(10_000):
        address = (0x0A000000 + number).to_bytes(4, "big")
        link.cache.arp(address, ONE, bool(number & 1), link.now)
        link.cache.advertised(V6[:12] + address, ONE, bool(number & 1), True, link.now)
    assert len(link.cache) == 0 and not link.calls and not link.frames
    assert link.cache.stats["unasked"] == 20_000


def test_strangers_push_out_only_strangers():
    link = Link(limit=8, strangers=16)
    ours = [bytes([10, 0, 0, number]) for number in range(1, 9)]
    for address in ours:
        link.bring(address, REACHABLE)
    for number in range(10_000):
        link.cache.asked((0x0A010000 + number).to_bytes(4, "big"), TWO, link.now)
        assert len(link.cache) <= 8 + 16
    assert all(link.state(address) is REACHABLE for address in ours)
    assert not link.frames and not link.calls and link.cache.next_deadline() is None
    # One of the last is known, needs no question, and is ours from now on.
    last = (0x0A010000 + 9999).to_bytes(4, "big")
    assert link.resolve(last) is not None and not link.frames
    assert link.state(last) is DELAY
    assert link.cache.stats["evicted"] == 10_000 - 16 + 1


def test_the_stranger_who_asked_last_stays():
    link = Link(strangers=2)
    a, b, c = (bytes([10, 0, 0, number]) for number in (1, 2, 3))
    for address in (a, b, a, c):
        link.cache.asked(address, ONE, link.now)
    assert link.state(a) is STALE and link.state(b) is None and link.state(c) is STALE


def test_the_least_recently_used_goes():
    link = Link(limit=3)
    a, b, c, d = (bytes([10, 0, 0, number]) for number in range(1, 5))
    for address in (a, b, c):
        link.bring(address, REACHABLE)
        link.now += 1
    link.resolve(a)
    link.now += 1
    link.cache.confirm(b, link.now)
    link.now += 1
    link.resolve(d)
    assert link.state(c) is None and link.state(a) is REACHABLE and link.state(b) is REACHABLE
    assert link.state(d) is INCOMPLETE and not link.calls


def test_who_waits_for_an_entry_that_must_go_is_told():
    link = Link(limit=2)
    a, b, c = (bytes([10, 0, 0, number]) for number in range(1, 4))
    for address in (a, b, c):
        link.resolve(address)
        link.now += 0.1
    assert not link.calls  # never out of `resolve`
    assert link.cache.next_deadline() < link.now
    link.cache.run_timers(link.now)
    assert link.calls == [("failed", a)]


def test_timers_of_busy_entries_do_not_pile_up():
    link = Link()
    link.bring(V6, REACHABLE)
    for macs in itertools.islice(itertools.cycle((ONE, TWO)), 10_000):
        link.cache.advertised(V6, macs, False, True, link.now)
        link.resolve(V6)
    assert len(link.cache._heap) < 100


# -- at random -------------------------------------------------------------------------------

SMALL = st.integers(1, 12)
MACS = st.sampled_from([ONE, TWO])


class Random(RuleBasedStateMachine):
    """Whatever happens: bounds hold, every wait ends within four seconds, and nobody is told twice."""

    @initialize()
    def start(self):
        self.link = Link(limit=5, strangers=3)
        self.waiting: dict[bytes, float] = {}

    def address(self, number):
        return bytes([10, 0, 0, number]) if number % 2 else V6[:15] + bytes([number])

    def settle(self):
        for what, address in self.link.calls:
            assert (self.link.cache.mac(address) is not None) == (what == "found")
            if what == "failed":
                assert self.link.state(address) is None
            self.waiting.pop(address, None)
        self.link.calls.clear()

    @rule(number=SMALL)
    def resolve(self, number):
        address = self.address(number)
        asked = self.link.cache.stats["questions"]
        if self.link.resolve(address) is None:
            if self.link.cache.stats["questions"] > asked:
                self.waiting[address] = self.link.now
            assert address in self.waiting
        else:
            # Unless it has been pushed out and came back as a stranger, which is told at the next turn of the timers.
            assert address not in self.waiting or address in self.link.cache._given_up

    @rule(number=SMALL, mac=st.one_of(st.none(), MACS), solicited=st.booleans(), override=st.booleans())
    def advertised(self, number, mac, solicited, override):
        before = len(self.link.cache)
        self.link.cache.advertised(self.address(number), mac, solicited, override, self.link.now)
        assert len(self.link.cache) == before
        self.settle()

    @rule(number=SMALL, mac=MACS, to_us=st.booleans())
    def arp(self, number, mac, to_us):
        before = len(self.link.cache)
        self.link.cache.arp(self.address(number), mac, to_us, self.link.now)
        assert len(self.link.cache) == before
        self.settle()

    @rule(number=SMALL, mac=MACS)
    def asked(self, number, mac):
        self.link.cache.asked(self.address(number), mac, self.link.now)
        self.settle()

    @rule(number=SMALL)
    def confirm(self, number):
        self.link.cache.confirm(self.address(number), self.link.now)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 2.0, 6.0, 50.0]))
    def wait(self, seconds):
        self.link.run(seconds)
        self.settle()
        for address, since in self.waiting.items():
            assert self.link.now - since <= 3.0 and self.link.state(address) is INCOMPLETE

    @invariant()
    def bounded(self):
        if hasattr(self, "link"):
            cache = self.link.cache
            assert len(cache._ours) <= 5 and len(cache._strangers) <= 3
            assert not cache._ours.keys() & cache._strangers.keys()
            for row in cache.table(self.link.now):
                assert (row["mac"] is None) == (row["state"] is INCOMPLETE)


Random.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_at_random = Random.TestCase
