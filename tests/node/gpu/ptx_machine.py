"""A machine for the PTX that nodes load, made of NumPy: the shipped text runs, instruction by instruction, where no GPU is.

Every thread of a grid is a lane of arrays. As on a GPU (PTX ISA, "Independent Thread Scheduling"), no order is promised but this one is
lawful: the lanes that are furthest behind go next, so that branches meet again, and a barrier is passed when all threads of a block are at
it. Reading or writing outside a buffer or across its alignment, an unknown instruction and a barrier that not all can reach are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\s*(?:\.\w+ [^\n{]*\s*)*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+(%\w+)<\d+>;")
_SHARED = re.compile(r"(\.extern )?\.shared \.align \d+ \.b8 (\w+)\[(\d*)\];")
_WORDS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
_DTYPES = {"pred": np.bool_, "f32": np.float32, "f64": np.float64} | {
    f"{kind}{bits}": getattr(np, f"{'int' if kind == 's' else 'uint'}{bits}") for kind in "bus" for bits in (8, 16, 32, 64)
}
_FIRST_ADDRESS = 0x7F00_0000_0000
_GAP = 2**20


class PtxError(Exception):
    """The text did what no GPU allows, or has an instruction that this machine does not know."""


@dataclass
class Kernel:
    """One entry: its parameters' types, its registers' types by prefix, its static shared memory, and its instructions."""

    parameters: list[tuple[str, str]]
    registers: dict[str, Any]
    shared: dict[str, int]
    shared_bytes: int
    program: list[tuple[str, bool, list[str], list[str]]]
    """Guard (empty: none), whether it is negated, the words of the instruction, its operands."""
    labels: dict[str, int]


@dataclass
class Machine:
    """One device with its memory. ``stuck`` names a 32-bit word of shared memory, by its place, that keeps no value."""

    text: str
    units: int = 4
    stuck: int | None = None
    buffers: dict[int, Array] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Read the text."""
        text = re.sub(r"//.*", "", self.text)
        extern = {name for dynamic, name, _ in _SHARED.findall(text) if dynamic}
        self.kernels = {name: _kernel(parameters, body, extern) for name, parameters, body in _ENTRY.findall(text)}

    def buffer(self, array: Array) -> int:
        """Put an array into the device's memory, shared with the caller; return its address."""
        address = _FIRST_ADDRESS + len(self.buffers) * 2**36 + _GAP
        self.buffers[address] = array.reshape(-1).view(np.uint8)
        return address

    def launch(self, name: str, blocks: int, threads: int, *arguments: int, shared: int = 0) -> Array:
        """Run a kernel on a grid to its end; ``shared`` bytes of dynamic shared memory. Returns the shared memory of all blocks."""
        run = _Run(self, self.kernels[name], blocks, threads, arguments, shared)
        run.run()
        return run.shared


def _kernel(parameters: str, body: str, extern: set[str]) -> Kernel:
    found = [(kind, name) for kind, name in re.findall(r"\.param \.(\w+) (\w+)", parameters)]
    registers = {prefix: _DTYPES[kind] for kind, prefix in _REGISTERS.findall(body)}
    shared, size = {}, 0
    for _, name, length in _SHARED.findall(body):
        shared[name] = size
        size += -(-int(length) // 16) * 16
    shared |= dict.fromkeys(extern, size)
    body = _SHARED.sub("", _REGISTERS.sub("", body))
    body = re.sub(r"\.pragma [^;]*;", "", body)
    program: list[tuple[str, bool, list[str], list[str]]] = []
    labels: dict[str, int] = {}
    for raw in re.split(r";|(?<=:)", body):
        line = raw.strip()
        if line.endswith(":"):
            labels[line[:-1]] = len(program)
        elif line:
            guard, negated = "", False
            if line.startswith("@"):
                guard, line = line.split(None, 1)
                negated, guard = guard[1] == "!", guard.lstrip("@!")
            opcode, _, rest = line.partition(" ") if "\t" not in line.split(" ")[0] else line.partition("\t")
            program.append((guard, negated, opcode.strip().split("."), _WORDS.findall(rest)))
    return Kernel(found, registers, shared, size, program, labels)


class _Run:
    def __init__(self, machine: Machine, kernel: Kernel, blocks: int, threads: int, arguments: tuple[int, ...], shared: int) -> None:  # noqa: PLR0917
        self.machine, self.kernel = machine, kernel
        count = blocks * threads
        lanes = np.arange(count, dtype=np.uint32)
        self.block = lanes // np.uint32(threads)
        self.special = {
            "%tid.x": lanes % np.uint32(threads), "%ctaid.x": self.block, "%smid": self.block % np.uint32(machine.units),
            "%ntid.x": np.full(count, threads, np.uint32), "%nctaid.x": np.full(count, blocks, np.uint32),
        }  # fmt: skip
        self.parameters = {name: _DTYPES[kind](argument) for (kind, name), argument in zip(kernel.parameters, arguments, strict=True)}
        self.shared = np.full((blocks, kernel.shared_bytes + shared), 0xA5, np.uint8)
        self.counter = np.zeros(count, np.int64)
        self.ended = np.zeros(count, np.bool_)
        self.waiting = np.zeros(count, np.bool_)
        self.registers: dict[str, Array] = {}

    def run(self) -> None:
        with np.errstate(over="ignore"):
            while not self.ended.all():
                running = np.flatnonzero(~self.ended & ~self.waiting)
                if not len(running):
                    self._pass_barrier()
                    continue
                lowest = int(self.counter[running].min())
                self._step(lowest, running[self.counter[running] == lowest])

    def _pass_barrier(self) -> None:
        places = {int(block): set(self.counter[~self.ended & (self.block == block)].tolist()) for block in np.unique(self.block)}
        if any(len(place) > 1 for place in places.values()):
            raise PtxError(f"threads of one block wait at different barriers: {places}")
        self.counter[self.waiting] += 1
        self.waiting[:] = False

    def _step(self, at: int, lanes: Array) -> None:
        guard, negated, opcode, operands = self.kernel.program[at]
        acting = lanes
        if guard:
            holds = self.registers[guard][lanes]
            acting = lanes[~holds if negated else holds]
        self.machine.executed.add(".".join(opcode))
        self.counter[lanes] += 1
        if opcode[0] == "bra":
            self.counter[acting] = self.kernel.labels[operands[0]]
        elif opcode[0] == "ret":
            self.ended[acting] = True
        elif opcode[0] in {"bar", "barrier"}:
            self.counter[acting] = at
            self.waiting[acting] = True
        elif len(acting):
            self._compute(opcode, operands, acting)

    def _compute(self, opcode: list[str], operands: list[str], lanes: Array) -> None:
        dtype = _DTYPES.get(opcode[-1])
        if opcode[0] == "ld":
            self._load(opcode, operands, lanes)
        elif opcode[0] == "st":
            for place, register in enumerate(_parts(operands[1])):
                self._access(opcode, operands[0], lanes, dtype, place, self._value(register, lanes, dtype))
        elif opcode[0] == "atom":
            self._set(operands[0], lanes, self._atomic(opcode, operands, lanes, dtype))
        elif opcode[0] == "cvt":
            self._set(operands[0], lanes, self._value(operands[1], lanes, dtype).astype(_DTYPES[opcode[-2]]))
        elif opcode[0] == "setp":
            compare = _COMPARISONS[opcode[1]]
            self._set(operands[0], lanes, compare(self._value(operands[1], lanes, dtype), self._value(operands[2], lanes, dtype)))
        elif opcode[0] == "selp":
            chosen = self._value(operands[3], lanes, np.bool_)
            self._set(operands[0], lanes, np.where(chosen, self._value(operands[1], lanes, dtype), self._value(operands[2], lanes, dtype)))
        elif opcode[0] == "mul" and opcode[1] == "wide":
            wide = np.int64 if opcode[2][0] == "s" else np.uint64
            left, right = (self._value(operand, lanes, dtype).astype(wide) for operand in operands[1:])
            self._set(operands[0], lanes, left * right)
        elif (action := _ACTIONS.get(opcode[0])) is not None:
            self._set(operands[0], lanes, action(*(self._value(operand, lanes, dtype) for operand in operands[1:])))
        else:
            raise PtxError(f"an instruction that is not known: {'.'.join(opcode)}")

    def _load(self, opcode: list[str], operands: list[str], lanes: Array) -> None:
        dtype = _DTYPES[opcode[-1]]
        if opcode[1] == "param":
            self._set(operands[0], lanes, np.full(len(lanes), self.parameters[operands[1][1:-1]]).astype(dtype))
            return
        # All parts before any register changes: the address may stand in one of them.
        values = [self._access(opcode, operands[1], lanes, dtype, place) for place in range(len(_parts(operands[0])))]
        for register, value in zip(_parts(operands[0]), values, strict=True):
            self._set(register, lanes, value)

    def _access(self, opcode: list[str], where: str, lanes: Array, dtype: Any, place: int, value: Array | None = None) -> Array:  # noqa: PLR0917
        """Read, or write ``value``, part ``place`` of a vector at an address."""
        base, _, offset = where[1:-1].partition("+")
        size, parts = np.dtype(dtype).itemsize, int(next((word[1:] for word in opcode if re.fullmatch(r"v[24]", word)), "1"))
        whole = self._value(base, lanes, np.uint64).astype(np.int64) + int(offset or 0)
        if (whole % (size * parts)).any():
            raise PtxError(f"an address that is not a multiple of {size * parts}: {'.'.join(opcode)} {where}")
        addresses = whole + place * size
        result = np.zeros(len(lanes), dtype)
        done = np.zeros(len(lanes), np.bool_)
        for start, memory, rows in self._memories(opcode, lanes):
            inside = (addresses >= start) & (addresses + size <= start + memory.shape[-1]) & ~done
            if not inside.any():
                continue
            done |= inside
            words = memory[..., : memory.shape[-1] // size * size].view(dtype)
            number = (addresses[inside] - start) // size
            index = number if rows is None else (rows[inside], number)
            if value is None:
                result[inside] = words[index]
            else:
                words[index] = value[inside]
                if rows is not None and self.machine.stuck is not None:
                    memory[:, self.machine.stuck * 4 : self.machine.stuck * 4 + 4] = 0x77
        if not done.all():
            raise PtxError(f"an access outside of every buffer: {'.'.join(opcode)} at {int(addresses[~done][0]):#x}")
        return result

    def _memories(self, opcode: list[str], lanes: Array) -> list[tuple[int, Array, Array | None]]:
        if "shared" in opcode:
            return [(0, self.shared, self.block[lanes])]
        return [(start, memory, None) for start, memory in self.machine.buffers.items()]

    def _atomic(self, opcode: list[str], operands: list[str], lanes: Array, dtype: Any) -> Array:
        value, old = self._value(operands[2], lanes, dtype), np.zeros(len(lanes), dtype)
        for number in range(len(lanes)):  # one after the other: that is what atomic means
            lane = lanes[number : number + 1]
            before = self._access(opcode, operands[1], lane, dtype, 0)
            after = before + value[number] if opcode[-2] == "add" else _ATOMICS[opcode[-2]](before, value[number])
            self._access(opcode, operands[1], lane, dtype, 0, after)
            old[number] = before[0]
        return old

    def _value(self, operand: str, lanes: Array, dtype: Any) -> Array:
        if operand in self.special:
            return self.special[operand][lanes].astype(dtype)
        if operand.startswith("%"):
            held = self.registers[operand][lanes]
            # Bits, not numbers: a register of 32 bits may hold what an instruction takes for a signed number.
            return held if held.dtype == dtype else held.view(dtype) if held.itemsize == np.dtype(dtype).itemsize else held.astype(dtype)
        if operand in self.kernel.shared:
            return np.full(len(lanes), self.kernel.shared[operand], dtype)
        if operand.startswith("0f"):
            return np.full(len(lanes), np.uint32(int.from_bytes(bytes.fromhex(operand[2:])))).view(np.float32)
        if operand.startswith("0d"):
            return np.full(len(lanes), np.uint64(int.from_bytes(bytes.fromhex(operand[2:])))).view(np.float64)
        if dtype is np.bool_:
            return np.full(len(lanes), int(operand, 0) != 0)
        bits = np.dtype(dtype).itemsize * 8
        return np.full(len(lanes), int(operand, 0) % 2**bits, f"uint{bits}").view(dtype)

    def _set(self, register: str, lanes: Array, value: Array) -> None:
        if register not in self.registers:
            prefix = register.rstrip("0123456789")
            self.registers[register] = np.zeros(len(self.block), self.kernel.registers[prefix])
        held = self.registers[register]
        held[lanes] = value if value.dtype == held.dtype else value.view(held.dtype) if value.itemsize == held.itemsize else value


def _parts(operand: str) -> list[str]:
    return [word.strip() for word in operand.strip("{}").split(",")]


def _insert_bits(new: Array, into: Array, start: Array, length: Array) -> Array:
    mask = ((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)) << start.astype(np.uint64)
    return (into & ~mask) | ((new << start.astype(np.uint64)) & mask)


_COMPARISONS: dict[str, Callable[..., Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_ATOMICS: dict[str, Callable[..., Array]] = {"min": np.minimum, "max": np.maximum}
_ACTIONS: dict[str, Callable[..., Array]] = {
    "mov": lambda a: a, "cvta": lambda a: a, "not": np.bitwise_not, "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c, "fma": lambda a, b, c: a * b + c, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": np.left_shift, "shr": np.right_shift, "div": np.floor_divide, "rem": np.remainder, "min": np.minimum, "max": np.maximum,
    "bfi": _insert_bits,
}  # fmt: skip
