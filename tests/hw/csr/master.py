"""An AXI4-Lite master for simulations: one access at a time, with every order of channels."""

from __future__ import annotations

__all__ = ["read", "write"]


async def write(
    ctx,
    axil,
    address: int,
    value: int,
    strobe: int = 0xF,
    *,
    aw_wait: int = 0,
    w_wait: int = 0,
    b_wait: int = 0,
) -> None:
    """Write and wait for the answer, which must be OKAY."""
    ctx.set(axil.awaddr, address)
    ctx.set(axil.wdata, value)
    ctx.set(axil.wstrb, strobe)
    cycle = 0
    aw_done = w_done = False
    while not (aw_done and w_done):
        ctx.set(axil.awvalid, not aw_done and cycle >= aw_wait)
        ctx.set(axil.wvalid, not w_done and cycle >= w_wait)
        *_, aw_valid, aw_ready, w_valid, w_ready = await ctx.tick().sample(
            axil.awvalid, axil.awready, axil.wvalid, axil.wready
        )
        aw_done |= bool(aw_valid and aw_ready)
        w_done |= bool(w_valid and w_ready)
        cycle += 1
    ctx.set(axil.awvalid, 0)
    ctx.set(axil.wvalid, 0)
    if b_wait:
        await ctx.tick().repeat(b_wait)
    ctx.set(axil.bready, 1)
    *_, resp = await ctx.tick().sample(axil.bresp).until(axil.bvalid)
    ctx.set(axil.bready, 0)
    assert resp == 0


async def read(ctx, axil, address: int, *, r_wait: int = 0) -> int:
    """Read; the answer must be OKAY."""
    ctx.set(axil.araddr, address)
    ctx.set(axil.arvalid, 1)
    await ctx.tick().until(axil.arready)
    ctx.set(axil.arvalid, 0)
    if r_wait:
        await ctx.tick().repeat(r_wait)
    ctx.set(axil.rready, 1)
    *_, value, resp = await ctx.tick().sample(axil.rdata, axil.rresp).until(axil.rvalid)
    ctx.set(axil.rready, 0)
    assert resp == 0
    return value
