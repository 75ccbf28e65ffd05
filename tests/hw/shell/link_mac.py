"""A MAC for simulations: whole frames on AXI4-Stream of 8 bytes, and the other way."""

from __future__ import annotations

from tests.hw.simulate import always

__all__ = ["collect_frames", "send_frame"]

_BYTES = 8


async def send_frame(ctx, dut, prefix, frame, *, bad=False, go=always):
    """A frame to `dut`'s members `{prefix}tdata`, ..., which cannot stall; pauses when `go()` is false."""

    def put(**values):
        for name, value in values.items():
            ctx.set(getattr(dut, prefix + name), value)

    for at in range(0, len(frame), _BYTES):
        while not go():
            put(tvalid=0)
            await ctx.tick()
        part = frame[at : at + _BYTES]
        last = at + _BYTES >= len(frame)
        put(tdata=int.from_bytes(part, "little"), tkeep=(1 << len(part)) - 1, tvalid=1, tlast=last, tuser=last and bad)
        await ctx.tick()
    put(tvalid=0)


async def collect_frames(ctx, dut, prefix, count, go=always):
    """The next `count` frames from `dut`; not ready when `go()` is false. They must be whole words and not bad."""
    frames, current = [], b""
    pins = [getattr(dut, prefix + name) for name in ("tvalid", "tdata", "tkeep", "tlast", "tuser")]
    ready = getattr(dut, prefix + "tready")
    while len(frames) < count:
        take = go()
        ctx.set(ready, take)
        _, _, valid, data, keep, last, user = await ctx.tick().sample(*pins)
        if not (take and valid):
            continue
        assert (keep, user) == ((1 << _BYTES) - 1, 0)
        current += data.to_bytes(_BYTES, "little")
        if last:
            frames.append(current)
            current = b""
    ctx.set(ready, 0)
    return frames
