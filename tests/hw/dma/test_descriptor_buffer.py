"""DescriptorBuffer: only wanted lanes are stored, errors stay with their beat, pops come back in order."""

# amaranth: UnusedElaboratable=no
from __future__ import annotations

import random

import pytest
from amaranth import Value
from amaranth.lib import data

from hw.dma.axi import ReadBeat
from hw.dma.descriptor_buffer import POPS, DescriptorBuffer, Popped
from hw.dma.descriptor_burst import Burst
from tests.hw.simulate import converts, run, seeds_and_sizes


@pytest.mark.parametrize("seed, size", seeds_and_sizes(2, (0, 8), (1, 16), (2, 32)))
def test_store_and_pop(seed: int, size: int) -> None:
    queues, depth = 4, 16
    dut = DescriptorBuffer(queues, depth, size)
    rng = random.Random(seed)
    model: list[dict[int, tuple[int, int]]] = [{} for _ in range(queues)]
    at = [rng.randrange(65536) for _ in range(queues)]

    async def bench(ctx):
        for _ in range(60):
            queue, count = rng.randrange(queues), rng.randrange(1, depth + 1)
            start = at[queue]
            burst = Burst.const({"queue": queue, "index": start, "count": count}).as_value().value
            ctx.set(Value.cast(dut.burst.payload), burst)
            ctx.set(dut.burst.valid, 1)
            await ctx.tick()
            ctx.set(dut.burst.valid, 0)
            await ctx.tick().repeat(2)
            per = max(size // 16, 1)  # descriptors in a beat
            first = start - start % per
            beats = -(-16 * (start + count - first) // size)
            for index in range(start, start + count):
                model[queue][index % depth] = (0, 0)
            for i in range(beats):
                value, error = rng.getrandbits(8 * size), rng.random() < 0.2
                beat = ReadBeat(size).const({"data": value, "error": error, "last": i == beats - 1})
                for octet in range(0, size, 8):
                    index, part = first + (size * i + octet) // 16, (size * i + octet) % 16
                    if start <= index < start + count:
                        old, failed = model[queue][index % depth]
                        word = value >> 8 * octet & (1 << 64) - 1
                        model[queue][index % depth] = (old | word << 8 * part, failed | int(error))
                ctx.set(Value.cast(dut.response.payload), beat.as_value().value)
                ctx.set(dut.response.valid, 1)
                await ctx.tick()
            ctx.set(dut.response.valid, 0)
            stored = []
            for _ in range(2):
                _, _, valid, which, index = await ctx.tick().sample(
                    dut.stored, dut.stored_queue, dut.stored_index
                )
                if valid:
                    stored.append((which, index))
            at[queue] = start + count & 0xFFFF
            assert stored[-1] == (queue, at[queue])
            assert ctx.get(dut.idle)
            other = rng.randrange(queues)
            wanted = rng.sample(sorted(model[other]), min(POPS, len(model[other])))
            for index in wanted:
                ctx.set(dut.pop, 1)
                ctx.set(dut.pop_queue, other)
                ctx.set(dut.pop_index, index)
                ctx.set(dut.pop_ok, 1)
                await ctx.tick()
            ctx.set(dut.pop, 0)
            ctx.set(dut.popped.ready, 1)
            for index in wanted:
                (raw,) = await ctx.tick().sample(Value.cast(dut.popped.payload)).until(dut.popped.valid)
                answer = data.Const(Popped, raw)
                assert (answer.queue, answer.ok, answer.index) == (other, 1, index)
                assert (answer.descriptor, answer.error) == model[other][index]
            ctx.set(dut.popped.ready, 0)

    run(dut, bench)


def test_converts() -> None:
    converts(DescriptorBuffer(4, 32))
    converts(DescriptorBuffer(2, 16, 8))
