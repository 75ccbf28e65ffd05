"""Typed access to registers, generated from `acceltcp.abi.registers`.

`Registers(transport)` has one attribute per block, blocks one per register:
`registers.CONTROL.control.write(enable=1)`, `registers.QUEUE[3].status.read()["idle"]`.
Array blocks are indexed; a block with one instance needs no index.
"""

from __future__ import annotations

from acceltcp.abi.registers import BLOCKS, Access, Block, Register

from .transport import Transport

__all__ = ["BlockAccess", "RegisterAccess", "Registers"]


class RegisterAccess:
    """One register of one block instance."""

    __slots__ = ("_register", "_transport", "address", "name")

    def __init__(self, transport: Transport, name: str, register: Register, address: int) -> None:
        self._transport = transport
        self._register = register
        self.name = name
        self.address = address

    def get(self) -> int:
        """The whole register. Raises `TypeError` for one that is write-only."""
        if self._register.access is Access.WO:
            raise TypeError(f"{self.name} is write-only")
        return self._transport.read32(self.address)

    def set(self, value: int) -> None:
        """Write the whole register. Raises `TypeError` for one that is read-only."""
        if self._register.access is Access.RO:
            raise TypeError(f"{self.name} is read-only")
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{self.name} must fit 32 bits, not {value!r}")
        self._transport.write32(self.address, value)

    def read(self) -> dict[str, int]:
        """All fields by name."""
        return self._register.decode(self.get())

    def write(self, **fields: int) -> None:
        """Write these fields, the others as zero. Raises `ValueError` naming a bad field."""
        self.set(self._register.encode(**fields))

    def update(self, **fields: int) -> None:
        """Read, change these fields, write."""
        self.write(**{**self.read(), **fields})

    def __repr__(self) -> str:
        return f"<register {self.name} at {self.address:#x}>"


class BlockAccess:
    """The registers of one block instance, as attributes."""

    def __init__(self, transport: Transport, block: Block, index: int = 0) -> None:
        name = block.name if block.count == 1 else f"{block.name}[{index}]"
        self._registers: dict[str, RegisterAccess] = {
            register.name: RegisterAccess(
                transport, f"{name}.{register.name}", register, block.address(register.name, index)
            )
            for register in block.registers
        }

    def __getattr__(self, name: str) -> RegisterAccess:
        registers: dict[str, RegisterAccess] = self.__dict__.get("_registers", {})
        try:
            return registers[name]
        except KeyError:
            raise AttributeError(f"there is no register {name!r} here") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._registers]


class _BlockArray:
    def __init__(self, transport: Transport, block: Block) -> None:
        self._transport = transport
        self._block = block
        self._made: dict[int, BlockAccess] = {}

    def __getitem__(self, index: int) -> BlockAccess:
        if index not in self._made:
            self._block.address(self._block.registers[0].name, index)  # checks the index
            self._made[index] = BlockAccess(self._transport, self._block, index)
        return self._made[index]

    def __len__(self) -> int:
        return self._block.count


class Registers:
    """All blocks, as attributes."""

    IDENT: BlockAccess
    CONTROL: BlockAccess
    TIME: BlockAccess
    SECRET: BlockAccess
    PORT: _BlockArray
    FLOWS: BlockAccess
    RSS: BlockAccess
    SPLICE: BlockAccess
    QUEUE: _BlockArray

    def __init__(self, transport: Transport) -> None:
        for block in BLOCKS:
            access = BlockAccess(transport, block) if block.count == 1 else _BlockArray(transport, block)
            setattr(self, block.name, access)
