"""`Commands`: carries out the commands that travel in the TX rings.

One at a time, in order. Each ends in exactly one `COMMAND_DONE` event with a status; a refused
command has had no effect. `NOP` succeeds; the listen commands are passed to the listen table,
whose answer is the status. (A command of the wrong length never gets here: the TX DMA refuses
it before it is read.)

* Latency: 3 cycles to the event for `NOP` and refusals; for listen commands 3 more than the
  listen table takes. Throughput: one command in that time.
* Registered: nothing on the streams; all of them come from flip-flops through little logic.
* Overflow: cannot happen. Reset: forgets the command in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import (
    COMMAND,
    LISTEN_COMMAND,
    CommandOpcode,
    EventType,
    Status,
)

from ..abi import message_layout
from ..config import NicConfig
from ..counts import counts_layout
from ..tcp.listen import ListenPort
from .events import EventRequest
from .tx import TxCommand

__all__ = ["Commands"]

LISTEN_OPCODES = (CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE)


class Commands(wiring.Component):
    """Runs commands. `config` is the NicConfig.

    Members
    -------
    i: In(stream(TxCommand)); a command is taken when its event has been.
    listen: Out(ListenPort()): the listen table.
    events: Out(stream(EventRequest)).
    idle: no command is in work or waits.
    counts: commands, command_errors.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(TxCommand)),
                "listen": Out(ListenPort()),
                "events": Out(stream.Signature(EventRequest)),
                "idle": Out(1),
                "counts": Out(counts_layout("commands", "command_errors")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        head = data.View(message_layout(COMMAND), self.i.p.command)
        listen = data.View(message_layout(LISTEN_COMMAND), self.i.p.command)

        def reserved(view, message):
            return Cat(view[f.name] for f in message.fields if f.reserved)

        for_table = Signal()
        known = Signal()
        unclean = Signal()
        status = Signal(8, reset_less=True)
        value = Signal(32, reset_less=True)
        done = Signal()
        event = self.events.p.event
        m.d.comb += [
            self.listen.command.payload.eq(self.i.p.command),
            self.events.p.queue.eq(self.i.p.queue),
            event.type.eq(EventType.COMMAND_DONE),
            event.status.eq(status),
            event.queue.eq(self.i.p.queue),
            event.index.eq(self.i.p.index),
            event.tag.eq(head.tag),
            event.value.eq(value),
            done.eq(self.events.valid & self.events.ready),
            self.i.ready.eq(done),
            self.idle.eq(~self.i.valid),
        ]
        m.d.sync += [
            self.counts.commands.eq(done & (status == Status.OK)),
            self.counts.command_errors.eq(done & (status != Status.OK)),
        ]

        with m.FSM(name="command"):
            with m.State("Look"):
                m.d.sync += value.eq(0)
                with m.Switch(head.opcode):
                    with m.Case(CommandOpcode.NOP):
                        # Its body is reserved: whoever gives it a meaning later can rely on zero.
                        m.d.sync += [
                            for_table.eq(0),
                            known.eq(1),
                            unclean.eq(Cat(reserved(head, COMMAND), head.body).any()),
                        ]
                    with m.Case(*LISTEN_OPCODES):
                        m.d.sync += [
                            for_table.eq(1),
                            known.eq(1),
                            unclean.eq(reserved(listen, LISTEN_COMMAND).any()),
                        ]
                    with m.Default():
                        m.d.sync += [for_table.eq(0), known.eq(0), unclean.eq(0)]
                with m.If(self.i.valid):
                    m.next = "Decide"
            with m.State("Decide"):
                m.next = "Tell"
                with m.If(~known):
                    m.d.sync += status.eq(Status.BAD_OPCODE)
                with m.Elif(unclean):
                    m.d.sync += status.eq(Status.BAD_ARGUMENT)
                with m.Elif(for_table):
                    m.next = "Ask the listen table"
                with m.Else():
                    m.d.sync += status.eq(Status.OK)
            with m.State("Ask the listen table"):
                m.d.comb += self.listen.command.valid.eq(1)
                with m.If(self.listen.command.ready):
                    m.next = "Wait for its answer"
            with m.State("Wait for its answer"):
                m.d.comb += self.listen.result.ready.eq(1)
                m.d.sync += [
                    status.eq(self.listen.result.p.status),
                    value.eq(self.listen.result.p.value),
                ]
                with m.If(self.listen.result.valid):
                    m.next = "Tell"
            with m.State("Tell"):
                m.d.comb += self.events.valid.eq(1)
                with m.If(self.events.ready):
                    m.next = "Look"
        return m
