"""`TableShare`: several users change the connection table through its one port.

One insertion and one deletion are under way at a time, each until its user has taken the answer; the next user is
chosen round robin.

* Latency: 0 for requests and answers. Throughput: as the table's, less one cycle between two changes.
* Registered: nothing. Overflow: cannot happen; requests wait. Reset: forgets who waits for an answer.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..stream.round_robin import round_robin
from .records import TablePort

__all__ = ["TableShare"]


class TableShare(wiring.Component):
    """See the module's text. `sizes` are the table's, `users` how many there are.

    Members
    -------
    users: In(TablePort(sizes)).array(users)
    port: Out(TablePort(sizes)): to the table.
    """

    def __init__(self, sizes, users):
        self._users = users
        super().__init__({"users": In(TablePort(sizes)).array(users), "port": Out(TablePort(sizes))})

    def elaborate(self, platform):
        m = Module()
        for request, answer in (("insert", "inserted"), ("delete", "deleted")):
            self._share(
                m, request,
                [getattr(user, request) for user in self.users], [getattr(user, answer) for user in self.users],
                getattr(self.port, request), getattr(self.port, answer),
            )  # fmt: skip
        return m

    def _share(self, m, name, requests, answers, request, answer):
        open_ = Signal(name=f"{name}_open")  # an answer is owed
        owner = Signal(range(self._users), name=f"{name}_owner")
        chosen = Signal.like(owner, name=f"{name}_chosen")
        m.d.comb += chosen.eq(owner)
        round_robin(m, Cat(one.valid for one in requests), owner, chosen)
        with m.If(~open_):
            with m.Switch(chosen):
                for k, one in enumerate(requests):
                    with m.Case(k):
                        m.d.comb += [
                            request.valid.eq(one.valid),
                            request.payload.eq(one.payload),
                            one.ready.eq(request.ready),
                        ]
        with m.If(request.valid & request.ready):
            m.d.sync += [open_.eq(1), owner.eq(chosen)]
        with m.Switch(owner):
            for k, one in enumerate(answers):
                with m.Case(k):
                    m.d.comb += [one.valid.eq(answer.valid), answer.ready.eq(one.ready)]
        for one in answers:
            m.d.comb += one.payload.eq(answer.payload)
        with m.If(answer.valid & answer.ready):
            m.d.sync += open_.eq(0)
