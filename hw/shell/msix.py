"""MSI-X: table, pending bits, and the messages themselves (PCI Express Base Specification, 6.1.4 and 7.7.2).

Table and pending bits lie in `BAR_MSIX` as `acceltcp.abi.pci` says; the registers that enable and mask the function are
the PCIe block's. A request of the core sets its vector's pending bit; a vector that is pending and masked by nothing is
sent, and its bit cleared. Requests of a vector that is pending already are one. While MSI-X is off requests are lost.

A message is a write of 4 bytes to the address that the table has for it. It goes the way of all writes to host memory,
so that PCI Express's ordering holds: see `MessageWriter`.

* Latency: from a request to the message at most `vectors` + 4 cycles. Throughput: one message per `vectors` cycles
  and the time of its write.
* Registered: all outputs. Overflow: cannot happen; requests are taken every cycle.
* Reset: table and pending bits as after a reset of the function, that is, every vector masked; the message under way
  stays on `message`, because a bus may not lose it.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from acceltcp.abi.pci import MSIX_ENTRY_BYTES, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, msix_vectors

from ..csr.axil import RegisterRequest
from ..csr.bus import QUEUE_BITS

__all__ = ["Message", "Msix"]

_WORDS = MSIX_ENTRY_BYTES // 4
_ADDRESS, _UPPER, _DATA, _CONTROL = range(_WORDS)


class Message(data.Struct):
    """One message."""

    address: 64  # multiple of 4
    data: 32


class Msix(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    queues: host queues of the core.

    Members
    -------
    request: In(stream of RegisterRequest), response: Out(stream of 32 bits): the BAR, as `AxiLiteSlave` asks for it.
        What is neither table nor pending bits reads as 0 and ignores writes.
    irq: In(stream of {"vector"}): the core's requests; a vector that does not exist is ignored.
    enable, mask: In(1): of the function, from the PCIe block.
    message: Out(stream of Message).
    """

    def __init__(self, queues):
        self._vectors = msix_vectors(queues)
        super().__init__(
            {
                "request": In(stream.Signature(RegisterRequest)),
                "response": Out(stream.Signature(32, always_ready=True)),
                "irq": In(stream.Signature(data.StructLayout({"vector": QUEUE_BITS}))),
                "enable": In(1),
                "mask": In(1),
                "message": Out(stream.Signature(Message)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        vectors = self._vectors
        index_bits = max(1, ceil_log2(vectors))
        pending, masked = Signal(vectors), Signal(vectors, init=(1 << vectors) - 1)
        sent = Signal(vectors)

        # Addresses and data are one memory of one row per vector, so a message is read at once. The control words, which are
        # reset, are the register `masked`.
        table = m.submodules.table = Memory(
            shape=data.ArrayLayout(8, 4 * _CONTROL), depth=1 << index_bits, init=[], attrs={"ram_style": "distributed"}
        )
        write = table.write_port(granularity=1)
        host, scan = table.read_port(), table.read_port()
        cleared = Signal(1 << index_bits)  # rows that were written since the reset: others read as 0

        request, word = self.request.payload, Signal(2)
        entry, in_table, in_pending = Signal(index_bits), Signal(), Signal()
        m.d.comb += [
            word.eq(request.word),
            entry.eq(request.word[2:]),
            in_table.eq(
                (request.word >= MSIX_TABLE_OFFSET // 4)
                & (request.word < MSIX_TABLE_OFFSET // 4 + _WORDS * vectors)
            ),
            in_pending.eq(request.word[1:] == MSIX_PBA_OFFSET // 8),
        ]
        self._elaborate_bar(m, write, host, cleared, masked, pending, entry, in_table, in_pending, word)
        self._elaborate_messages(m, scan, cleared, masked, pending, sent, index_bits)

        # A request in the cycle in which its vector is sent is a new one.
        asked = Signal(vectors)
        m.d.comb += self.irq.ready.eq(1)
        for vector in range(vectors):
            m.d.comb += asked[vector].eq(self.irq.valid & (self.irq.p.vector == vector))
        m.d.sync += pending.eq(((pending & ~sent) | asked) & self.enable.replicate(vectors))
        return m

    def _elaborate_bar(self, m, write, host, cleared, masked, pending, entry, in_table, in_pending, word):
        request = self.request.payload
        asking, late = Signal(), Signal()
        late_word, late_fresh, other = Signal(2), Signal(), Signal(32)
        fresh = ~cleared.bit_select(entry, 1)
        taken = self.request.valid & self.request.ready
        writes = taken & request.write & in_table
        m.d.comb += [
            self.request.ready.eq(~asking & ~late),
            write.addr.eq(entry),
            host.addr.eq(entry),
            host.en.eq(taken),
        ]
        # A row is written for the first time as a whole, so that its other words become 0.
        with m.Switch(word):
            for at in (_ADDRESS, _UPPER, _DATA):
                with m.Case(at):
                    for byte in range(4):
                        value = request.data.word_select(byte, 8)
                        keep = 0xFC if at == _ADDRESS and byte == 0 else 0xFF
                        m.d.comb += [
                            write.data[4 * at + byte].eq(
                                Mux(request.strobe[byte], value & keep, 0)
                            ),
                            write.en[4 * at + byte].eq(writes & request.strobe[byte]),
                        ]
        with m.If(writes & (word != _CONTROL)):
            m.d.sync += cleared.bit_select(entry, 1).eq(1)
            with m.If(fresh):
                m.d.comb += write.en.eq(~0)
        with m.If(writes & (word == _CONTROL) & request.strobe[0]):
            m.d.sync += masked.bit_select(entry, 1).eq(request.data[0])

        m.d.sync += [asking.eq(taken), late.eq(asking)]
        with m.If(taken):
            m.d.sync += [late_word.eq(word), late_fresh.eq(fresh | ~in_table | request.write), other.eq(0)]
            with m.If(in_table & (word == _CONTROL)):
                m.d.sync += [other.eq(masked.bit_select(entry, 1)), late_fresh.eq(1)]
            with m.If(in_pending):
                m.d.sync += other.eq(Mux(request.word[0], pending[32:], pending[:32]))
        words = [Cat(host.data[4 * at : 4 * at + 4]) for at in (_ADDRESS, _UPPER, _DATA)]
        with m.If(asking):
            m.d.sync += self.response.payload.eq(Mux(late_fresh, other, Array([*words, C(0, 32)])[late_word]))
        m.d.comb += self.response.valid.eq(late)

    def _elaborate_messages(self, m, scan, cleared, masked, pending, sent, index_bits):
        vectors = self._vectors
        at, chosen = Signal(range(vectors)), Signal(index_bits)
        message = self.message.payload
        m.d.comb += scan.addr.eq(at)
        m.d.sync += at.eq(Mux(at == vectors - 1, 0, at + 1))
        with m.FSM():
            with m.State("Look"):
                # Masks and pending bits are looked at in the cycle in which the bit is cleared: no message is sent twice.
                due = (pending & ~masked).bit_select(at, 1)
                with m.If(due & self.enable & ~self.mask):
                    m.d.comb += sent.bit_select(at, 1).eq(1)
                    m.d.sync += chosen.eq(at)
                    m.next = "Read"
            with m.State("Read"):
                row = Cat(*scan.data)
                fresh = ~cleared.bit_select(chosen, 1)
                m.d.sync += [
                    message.address.eq(Mux(fresh, 0, row[:64])),
                    message.data.eq(Mux(fresh, 0, row[64:])),
                    self.message.valid.eq(1),
                ]
                m.next = "Send"
            with m.State("Send"):
                with m.If(self.message.ready):
                    m.d.sync += self.message.valid.eq(0)
                    m.next = "Look"
