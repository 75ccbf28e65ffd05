"""Every size and option of the NIC, in one place.

One `NicConfig` per board. Values are checked when the configuration is made; the message
names the field, the value and what is allowed.
"""

from dataclasses import dataclass, fields

from amaranth.utils import exact_log2

from acceltcp.abi.registers import PORTS_MAX, QUEUES_MAX

__all__ = ["AXI_BYTES", "KIND_BITS", "SLOT_BITS", "NicConfig", "TableSizes", "ram_style"]

SLOT_BITS = 144
"""Width of a slot of the connection table, at most."""

KIND_BITS = 2
"""Width of the kind of an entry in the connection table."""

AXI_BYTES = 64
"""Width of the AXI4 master where nothing else is said, and of everything that stands beside PCI Express."""


def ram_style(depth, *, ultra, block, ultra_ram=True):
    """What a memory of `depth` words is made of, as Vivado names it: Ultra RAM from `ultra` words, where `ultra_ram`
    says that there is some, block RAM from `block` words, else LUTs."""
    if depth >= ultra and ultra_ram:
        return "ultra"
    return "block" if depth >= block else "distributed"


@dataclass(frozen=True)
class TableSizes:
    """Sizes of a connection table for 2^`index_bits` flows.

    Two banks of `ways` memories each; a key may lie in one row of either bank. With nine ways
    the table has 1/8 more slots than there are flows, so that it is never fuller than 89 %.
    A slot of 144 bits is two words of Ultra RAM.

    index_bits: width of an entry's index.
    stash: entries of the stash; one of them is kept free for moves.
    ways: memories per bank, 1 to 16.
    row_bits: width of a row's number; a bank has 2^row_bits rows. None: index_bits - 4.
    ultra_ram: large banks may be Ultra RAM.
    digest: bits of a key's digest that are kept, at most, 48 to 128.
    """

    index_bits: int
    stash: int = 16
    ways: int = 9
    row_bits: int | None = None
    ultra_ram: bool = True
    digest: int = 128

    def __post_init__(self):
        if self.row_bits is None:
            object.__setattr__(self, "row_bits", self.index_bits - 4)
        for name, low, high in (("index_bits", 1, 24), ("stash", 2, 32), ("ways", 1, 16), ("row_bits", 1, 20), ("digest", 48, 128)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
        if self.slots + self.stash >= 2 << self.index_bits:
            raise ValueError(
                f"slots and stash must be fewer than {2 << self.index_bits} with index_bits={self.index_bits}, "
                f"not {self.slots} and {self.stash}"
            )

    @property
    def slots(self):
        """Slots in both banks, without the stash."""
        return 2 * self.ways << self.row_bits

    @property
    def digest_bits(self):
        """Bits of a key's digest that are kept and compared; the lowest 2 * row_bits of them
        are the rows in bank 0 and bank 1."""
        return min(SLOT_BITS - 1 - KIND_BITS - self.index_bits, self.digest)


@dataclass(frozen=True)
class NicConfig:
    """Parameters of the core.

    width: bytes per beat of the packet path: 8, 32 or 64.
    axi_bytes: bytes per beat of the DMA and of the AXI4 master: 8, 16, 32 or 64, not below `width`. Fewer take less
        area and give less throughput per cycle; boards with PCI Express have 64.
    ports: MAC ports, 1 or 2.
    queues: host queues, a power of two up to 64.
    listeners: entries of the listen table, a power of two from 1 to 256.
    flows: connections that the NIC can hold while it closes them, a power of two from 512 to
        1,048,576.
    stash: entries of the connection table's stash, 4 to 32.
    ways: memories per bank of the connection table, 9 or 3. With 9 it has 1/8 more slots than there are flows, with 3 half
        as many more, which costs little where tables are small: a memory is as deep as it is anyway.
    digest: bits of the keyed hash by which the connection table knows a connection, 48 to 128. A packet of no connection is
        taken for one of n with probability n / 2^digest.
    splices: pairs of connections that the NIC can forward to each other, a power of two from 16 to half of
        `flows`, since each takes two entries of the connection table; 0: none; None: a quarter of `flows`, 65,536 at most.
    rx_buffer_beats: depth of each port's receive buffer in beats, a power of two; None: 64 KiB.
    tx_buffer_beats: depth of the transmit buffer in beats, a power of two; None: 32 KiB.
    packets: packets that wait between the receive pipeline and the host, a power of two.
    descriptors: prefetched descriptors per queue and direction, a power of two.
    read_beats: AXI read data in flight, in beats of `axi_bytes`, a power of two: what hides the bus latency; None: 32 KiB.
    writes: AXI write bursts in flight.
    max_frame: largest frame in bytes, without FCS.
    pipelined_hash: one cookie hash per cycle; else one per about 20 cycles in a fraction of
        the area.
    tick_us: period of `tick` in microseconds, a multiple of 10.
    rss: receive side scaling; without it every packet to no listener goes to the default queue.
    ultra_ram: the device has Ultra RAM; without it large memories are block RAM.
    """

    width: int = 64
    axi_bytes: int = AXI_BYTES
    ports: int = 1
    queues: int = 16
    listeners: int = 64
    flows: int = 4096
    stash: int = 16
    ways: int = 9
    digest: int = 128
    splices: int | None = None
    rx_buffer_beats: int | None = None
    tx_buffer_beats: int | None = None
    packets: int = 512
    descriptors: int = 256
    read_beats: int | None = None
    writes: int = 256
    max_frame: int = 9018
    pipelined_hash: bool = True
    tick_us: int = 100
    rss: bool = True
    ultra_ram: bool = True

    def __post_init__(self):
        self._one_of("width", (8, 32, 64))
        self._one_of("axi_bytes", (8, 16, 32, 64))
        if self.axi_bytes < self.width:
            raise ValueError(f"axi_bytes must be at least width={self.width}, not {self.axi_bytes}")
        for name, octets in (("rx_buffer_beats", 64 << 10), ("tx_buffer_beats", 32 << 10)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, octets // self.width)
        if self.read_beats is None:
            object.__setattr__(self, "read_beats", (32 << 10) // self.axi_bytes)
        self._range("ports", 1, PORTS_MAX)
        for name, low, high in (
            ("queues", 1, QUEUES_MAX),
            ("listeners", 1, 256),
            ("flows", 512, 1 << 20),
            ("rx_buffer_beats", 64, 1 << 16),
            ("tx_buffer_beats", 64, 1 << 16),
            ("packets", 32, 4096),
            ("descriptors", 16, 1024),
            ("read_beats", 32, 4096),
            ("writes", 8, 1024),
        ):
            self._power_of_two(name, low, high)
        self._range("stash", 4, 32)
        self._one_of("ways", (9, 3))
        self._range("digest", 48, 128)
        if self.splices is None:
            object.__setattr__(self, "splices", min(self.flows // 4, 1 << 16))
        if self.splices != 0:
            self._power_of_two("splices", 16, self.flows // 2)
        self._range("max_frame", 1514, 16128)
        for name in ("rx_buffer_beats", "tx_buffer_beats"):
            if getattr(self, name) * self.width < 2 * self.max_frame:
                raise ValueError(
                    f"{name} must hold two frames of max_frame={self.max_frame} bytes, "
                    f"not {getattr(self, name)} beats of {self.width}"
                )
        if self.read_beats * self.axi_bytes < 2 * self.max_frame:
            raise ValueError(
                f"read_beats must hold two frames of {self.max_frame} bytes, not {self.read_beats} beats of {self.axi_bytes}"
            )
        if self.tick_us % 10 or not 10 <= self.tick_us <= 2550:
            raise ValueError(f"tick_us must be a multiple of 10 from 10 to 2550, not {self.tick_us!r}")

    def _one_of(self, name, allowed):
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")

    def _range(self, name, low, high):
        value = getattr(self, name)
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")

    def _power_of_two(self, name, low, high):
        self._range(name, low, high)
        value = getattr(self, name)
        if value & (value - 1):
            raise ValueError(f"{name} must be a power of two from {low} to {high}, not {value!r}")

    @property
    def flow_bits(self):
        """Width of a flow's index."""
        return exact_log2(self.flows)

    @property
    def splice_bits(self):
        """Width of a splice's index."""
        return exact_log2(self.splices) if self.splices else 0

    @property
    def table(self):
        """Sizes of the connection table."""
        rows = self.flow_bits - (4 if self.ways == 9 else 2)
        return TableSizes(self.flow_bits, self.stash, self.ways, rows, self.ultra_ram, self.digest)

    @classmethod
    def names(cls):
        """Names of all parameters."""
        return [field.name for field in fields(cls)]
