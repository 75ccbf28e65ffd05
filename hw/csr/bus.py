"""How the register file talks to the engines about queues.

Engines keep what they need of a queue's set-up in small memories of their own and listen to
one broadcast of register writes. Enabling is a broadcast too, made only once the ring
sizes and bases of that queue have been checked. Disabling happens while every engine is
held and idle, so that nothing of the queue is in flight when it goes off.
"""

from amaranth.lib.wiring import Out, Signature

from acceltcp.abi.registers import QUEUE, QUEUES_MAX

__all__ = ["QUEUE_BITS", "QueueBus", "queue_word"]

QUEUE_BITS = (QUEUES_MAX - 1).bit_length()


def queue_word(name):
    """Number of a QUEUE register on the bus: its offset in 32-bit words."""
    return QUEUE[name].offset // 4


class QueueBus(Signature):
    """Broadcast from the register file to all engines; every line lasts one cycle.

    write: `data` is being written to register `word` (see `queue_word`) of `queue`.
    enable: `queue` goes on; all its indices become 0. Never together with `write`.
    disable: `queue` goes off; engines are held and idle at that moment.
    """

    def __init__(self):
        super().__init__(
            {
                "queue": Out(QUEUE_BITS),
                "write": Out(1),
                "word": Out(range(QUEUE.stride // 4)),
                "data": Out(32),
                "enable": Out(1),
                "disable": Out(1),
            }
        )
