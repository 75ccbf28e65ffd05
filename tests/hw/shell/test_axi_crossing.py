"""`AxiCrossing`: every channel keeps its order and all of its fields."""

import random

import pytest
from amaranth import Value

from hw.shell.axi_crossing import AxiCrossing
from hw.shell.message_writer import BusSignature

from ..simulate import sometimes
from .clocks import run

COUNT = 40
FORWARD = ("aw", "w", "ar")


@pytest.mark.parametrize("periods, size", [((4.0, 3.1), 64), ((3.1, 4.0), 64), ((5.0, 4.0), 32)])
def test_channels(periods, size):
    dut = AxiCrossing(name="x", i_domain="a", o_domain="b", depth=8, size=size)
    assert len(dut.i.wstrb) == len(dut.o.wstrb) == size
    rng = random.Random(3)
    benches, checks = [], []
    for number, channel in enumerate(("aw", "w", "b", "ar", "r")):
        forward = channel in FORWARD
        source, target = (dut.i, dut.o) if forward else (dut.o, dut.i)
        domains = ("a", "b") if forward else ("b", "a")
        names = [
            name
            for name in BusSignature().members
            if name.startswith(channel) and not name.endswith(("valid", "ready"))
        ]
        sent = [[rng.getrandbits(len(Value.cast(getattr(source, name)))) for name in names] for _ in range(COUNT)]
        got: list[list[int]] = []
        checks.append((sent, got))

        async def send(ctx, channel=channel, source=source, domain=domains[0], names=names, sent=sent, number=number):
            go = sometimes(number)
            for values in sent:
                while not go():
                    await ctx.tick(domain)
                for name, value in zip(names, values, strict=True):
                    ctx.set(getattr(source, name), value)
                ctx.set(getattr(source, f"{channel}valid"), 1)
                await ctx.tick(domain).until(getattr(source, f"{channel}ready"))
                ctx.set(getattr(source, f"{channel}valid"), 0)

        async def take(ctx, channel=channel, target=target, domain=domains[1], names=names, got=got, number=number):
            go = sometimes(number + 10)
            valid, ready = (getattr(target, f"{channel}{name}") for name in ("valid", "ready"))
            while len(got) < COUNT:
                ctx.set(ready, go())
                sampled = await ctx.tick(domain).sample(valid, ready, *(getattr(target, name) for name in names))
                valid_now, ready_now, *values = sampled[-2 - len(names) :]
                if valid_now and ready_now:
                    got.append(values)

        benches += [send, take]
    run(dut, {"a": periods[0], "b": periods[1]}, *benches)
    for sent, got in checks:
        assert got == sent
    assert len(set(dut.pointers)) == 10
