"""`Commands`: carries out the commands that travel in the TX rings.

One at a time, in order. Each ends in exactly one `COMMAND_DONE` event with a status; a refused
command has had no effect. `NOP` succeeds; the listen commands are passed to the listen table,
whose answer is the status; FLOW_UPDATE likewise to the teardown engine. CLOSE is passed on and makes its own event:
the next command need not wait for it. (A command of the wrong length never gets here: the TX DMA refuses
it before it is read.) SPLICE goes the way of CLOSE, SPLICE_UPDATE that of FLOW_UPDATE.

* Latency: 3 cycles to the event for `NOP` and refusals; for listen commands 3 more than the
  listen table takes, for FLOW_UPDATE about 12, for CLOSE 3 until it is passed on. Throughput: one command in that time.
* Registered: nothing on the streams; all of them come from flip-flops through little logic.
* Overflow: cannot happen. Reset: forgets the command in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import (
    COMMAND,
    FLOW_COMMAND,
    LISTEN_COMMAND,
    SPLICE_UPDATE_COMMAND,
    CommandOpcode,
    EventType,
    FlowFlag,
    Status,
)

from ..abi import flag_of, message_layout, reserved_of
from ..config import NicConfig
from ..counts import counts_layout
from ..tcp.flow import FlowUpdate
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
    close: Out(stream(TxCommand)): CLOSE commands.
    updates, updated: Out(stream(FlowUpdate)), In(stream({"status"})): FLOW_UPDATE.
    splice: Out(stream(TxCommand)): SPLICE commands; with `config.splices` only.
    splice_updates, splice_updated: Out(stream({"splice", "copy"})), In(stream({"status"})): SPLICE_UPDATE; likewise.
    events: Out(stream(EventRequest)).
    idle: no command is in work or waits.
    counts: commands, command_errors.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._config = config
        splices = {
            "splice": Out(stream.Signature(TxCommand)),
            "splice_updates": Out(stream.Signature(data.StructLayout({"splice": 32, "copy": 1}))),
            "splice_updated": In(stream.Signature(data.StructLayout({"status": 8}))),
        }
        super().__init__(
            {
                **(splices if config.splices else {}),
                "i": In(stream.Signature(TxCommand)),
                "listen": Out(ListenPort()),
                "close": Out(stream.Signature(TxCommand)),
                "updates": Out(stream.Signature(FlowUpdate(config))),
                "updated": In(stream.Signature(data.StructLayout({"status": 8}))),
                "events": Out(stream.Signature(EventRequest)),
                "idle": Out(1),
                "counts": Out(counts_layout("commands", "command_errors")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        head = data.View(message_layout(COMMAND), self.i.p.command)
        listen = data.View(message_layout(LISTEN_COMMAND), self.i.p.command)
        flow = data.View(message_layout(FLOW_COMMAND), self.i.p.command)

        splice = data.View(message_layout(SPLICE_UPDATE_COMMAND), self.i.p.command)
        for_table, for_flow, for_close, for_splice, for_end = (
            Signal(name=f"for_{name}") for name in ("table", "flow", "close", "splice", "end")
        )
        no_flow = Signal()
        known = Signal()
        unclean = Signal()
        status = Signal(8, reset_less=True)
        value = Signal(32, reset_less=True)
        done, passed, splice_passed = Signal(), Signal(), Signal()
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
            self.i.ready.eq(done | passed),
            passed.eq(self.close.valid & self.close.ready | splice_passed),
            self.close.payload.eq(self.i.payload),
            *(
                (
                    self.splice.payload.eq(self.i.payload),
                    self.splice_updates.p.splice.eq(splice.splice),
                    self.splice_updates.p.copy.eq(splice.copy),
                )
                if self._config.splices
                else ()
            ),
            self.updates.p.index.eq(flow.flow),
            self.updates.p.fin.eq(flag_of(flow.flags, FlowFlag.FIN)),
            self.updates.p.abort.eq(flag_of(flow.flags, FlowFlag.ABORT)),
            *(self.updates.p[name].eq(flow[name]) for name in ("snd_end", "ack", "ts_recent", "window")),
            self.idle.eq(~self.i.valid),
        ]
        m.d.sync += [
            self.counts.commands.eq(done & (status == Status.OK)),
            self.counts.command_errors.eq(done & (status != Status.OK)),
        ]

        with m.FSM(name="command"):
            with m.State("Look"):
                m.d.sync += [
                    value.eq(0),
                    for_table.eq(0),
                    for_flow.eq(0),
                    for_close.eq(0),
                    for_splice.eq(0),
                    for_end.eq(0),
                    no_flow.eq(flow.flow >= self._config.flows),
                ]
                with m.Switch(head.opcode):
                    with m.Case(CommandOpcode.NOP):
                        # Its body is reserved: whoever gives it a meaning later can rely on zero.
                        m.d.sync += [
                            known.eq(1),
                            unclean.eq(Cat(reserved_of(head, COMMAND), head.body).any()),
                        ]
                    with m.Case(*LISTEN_OPCODES):
                        m.d.sync += [
                            for_table.eq(1),
                            known.eq(1),
                            unclean.eq(reserved_of(listen, LISTEN_COMMAND).any()),
                        ]
                    with m.Case(CommandOpcode.CLOSE):
                        m.d.sync += [for_close.eq(1), known.eq(1), unclean.eq(0)]
                    with m.Case(CommandOpcode.FLOW_UPDATE):
                        m.d.sync += [
                            for_flow.eq(1),
                            known.eq(1),
                            unclean.eq(
                                reserved_of(flow, FLOW_COMMAND).any() | ((flow.flags & ~sum(FlowFlag) & 0xFF) != 0)
                            ),
                        ]
                    if self._config.splices:
                        with m.Case(CommandOpcode.SPLICE):
                            m.d.sync += [for_splice.eq(1), known.eq(1), unclean.eq(0)]
                        with m.Case(CommandOpcode.SPLICE_UPDATE):
                            m.d.sync += [
                                for_end.eq(1),
                                known.eq(1),
                                unclean.eq(reserved_of(splice, SPLICE_UPDATE_COMMAND).any()),
                            ]
                    with m.Default():
                        m.d.sync += [known.eq(0), unclean.eq(0)]
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
                with m.Elif(for_close):
                    m.next = "Pass it on"
                with m.Elif(for_flow & no_flow):
                    m.d.sync += status.eq(Status.NOT_FOUND)
                with m.Elif(for_flow):
                    m.next = "Update the flow"
                with m.Else():
                    m.d.sync += status.eq(Status.OK)
                if self._config.splices:
                    with m.If(known & ~unclean & for_splice):
                        m.next = "Pass on a splice"
                    with m.If(known & ~unclean & for_end):
                        m.next = "End a splice"
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
            with m.State("Pass it on"):
                m.d.comb += self.close.valid.eq(1)
                with m.If(self.close.ready):
                    m.next = "Look"
            with m.State("Update the flow"):
                m.d.comb += self.updates.valid.eq(1)
                with m.If(self.updates.ready):
                    m.next = "Wait for the flow"
            with m.State("Wait for the flow"):
                m.d.comb += self.updated.ready.eq(1)
                m.d.sync += status.eq(self.updated.p.status)
                with m.If(self.updated.valid):
                    m.next = "Tell"
            if self._config.splices:
                with m.State("Pass on a splice"):
                    m.d.comb += [self.splice.valid.eq(1), splice_passed.eq(self.splice.ready)]
                    with m.If(self.splice.ready):
                        m.next = "Look"
                with m.State("End a splice"):
                    m.d.comb += self.splice_updates.valid.eq(1)
                    with m.If(self.splice_updates.ready):
                        m.next = "Wait for the splice"
                with m.State("Wait for the splice"):
                    m.d.comb += self.splice_updated.ready.eq(1)
                    m.d.sync += status.eq(self.splice_updated.p.status)
                    with m.If(self.splice_updated.valid):
                        m.next = "Tell"
            with m.State("Tell"):
                m.d.comb += self.events.valid.eq(1)
                with m.If(self.events.ready):
                    m.next = "Look"
        return m
