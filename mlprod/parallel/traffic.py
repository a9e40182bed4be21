"""What a compiled program moves: collectives between devices, bytes to and from memory; read from its HLO text.

Promise: a loop's body counts as often as it runs, a collective that is started and awaited counts once, and wire bytes are
what one device sends by the ring algorithm: (n-1)/n of the whole array for all-gather, reduce-scatter and all-to-all, twice
that for all-reduce, the array for a permute.
Price: the text is the compiler's own and changes with it; of several branches the one that sends most counts.

Memory bytes are those of the operands and results of each instruction that is no part of a fusion, without what lies in a
TPU's on-chip memory: nothing is taken to stay in a cache. What is only sliced counts as its slice.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
STARTS = {f"{kind}{end}": kind for kind in KINDS for end in ("", "-start")} | {"ragged-all-to-all": "all-to-all"}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) (?:\(.*\) -> .*)?\{")
INSTRUCTION = re.compile(r"(ROOT )?%?([\w.-]+) = (.*)")
OPCODE = re.compile(r" ([a-z][\w-]*)\(")
MOVES_NOTHING = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "after-all"}
SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of collective in a program: how often it runs, and the bytes that a device sends for all of them."""

    kind: str
    count: int
    wire_bytes: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one device moves in one run of a program."""

    collectives: tuple[Collective, ...]  # by kind
    memory_bytes: float
    unknown_loops: int  # counted as if they ran once: nothing says how often they do

    @property
    def wire_bytes(self) -> float:
        """Sent to other devices."""
        return sum(each.wire_bytes for each in self.collectives)


@dataclass(slots=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    inside: str  # its brackets
    rest: str  # attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.inside)


@dataclass(slots=True)
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = field(default_factory=dict)
    root: str = ""


@dataclass(slots=True)
class _Sums:
    counts: Counter[str] = field(default_factory=Counter)
    wire: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory: float = 0.0
    unknown: int = 0

    def add(self, other: "_Sums", times: int) -> None:
        for kind in other.counts:
            self.counts[kind] += times * other.counts[kind]
            self.wire[kind] += times * other.wire[kind]
        self.memory += times * other.memory
        self.unknown += other.unknown


def traffic(hlo: str, num_devices: int) -> Traffic:
    """Returns what a device moves in one run of a program; `hlo`: `compiled.as_text()`.

    Raises:
        ValueError: the text holds no program.
    """
    computations, entry = _parse(hlo)
    if not entry:
        raise ValueError("the text has no ENTRY computation")
    sums = _walk(computations, entry, num_devices, set())
    kinds = [Collective(kind, sums.counts[kind], sums.wire[kind]) for kind in sorted(sums.counts)]
    return Traffic(tuple(kinds), sums.memory, sums.unknown)


def array_bytes(shape: str, *, on_chip: bool = True) -> float:
    """Returns the bytes of a printed shape, of a tuple those of all its arrays; `on_chip`: count what is on the chip too."""
    total = 0.0
    for dtype, dims, layout in ARRAY.findall(shape):
        if on_chip or "S(1)" not in layout:
            total += math.prod(int(d) for d in dims.split(",") if d) * _itemsize(dtype)
    return total


def _itemsize(dtype: str) -> float:
    found = re.fullmatch(r"[a-z]+?(\d+)(?:e\d.*)?", dtype)
    return int(found[1]) / 8 if found else 1.0 if dtype == "pred" else 0.0  # a token has none


def _parse(hlo: str) -> tuple[dict[str, _Computation], str]:
    """Returns ({name: computation}, the name of the one that runs)."""
    computations: dict[str, _Computation] = {}
    entry, here = "", _Computation("")
    for line in hlo.splitlines():
        if not line.startswith(" "):
            head = HEAD.match(line) if line.endswith("{") else None
            if head:
                here = computations[head[2]] = _Computation(head[2])
                entry = head[2] if head[1] else entry
            continue
        found = INSTRUCTION.match(line.strip())
        if found:
            each = _instruction(found[2], re.sub(r"/\*.*?\*/", "", found[3]))
            here.instructions[each.name] = each
            here.root = each.name if found[1] else here.root
    return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
    """Returns an instruction printed as `shape opcode(operands), attributes`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else 0
    found = OPCODE.search(text, end)
    if not found:
        return _Instruction(name, text, "", "", "")
    last = _closing(text, found.end() - 1)
    return _Instruction(name, text[: found.start()], found[1], text[found.end() : last], text[last + 1 :])


def _closing(text: str, start: int) -> int:
    """Returns where the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text)


def _walk(computations: Mapping[str, _Computation], name: str, num_devices: int, chains: set[str]) -> _Sums:
    """Returns the sums of one run of a computation; `chains`: collectives of this body that were counted (a TPU prints one in
    every fusion of its chain)."""
    here, sums = computations[name], _Sums()
    for each in here.instructions.values():
        kind = STARTS.get(each.opcode)
        if kind:
            _count(sums, here, each, kind, num_devices, chains)
        elif each.opcode == "while":
            body, trips = _walk(computations, _called(each, "body"), num_devices, set()), _trips(computations, each)
            body.unknown += trips is None
            sums.add(body, 1 if trips is None else trips)
        elif each.opcode == "conditional":
            runs = [_walk(computations, branch, num_devices, chains) for branch in _branches(each)]
            sums.add(max(runs, key=lambda run: (sum(run.wire.values()), run.memory)), 1)
        elif not each.opcode.endswith(("-done", "-update")):
            calls = _called(each, "to_apply" if each.opcode == "call" else "calls")
            if calls:
                inner = _walk(computations, calls, num_devices, chains)
                fused = each.opcode == "fusion" or each.opcode.endswith("-start")
                inner.memory = 0.0 if fused else inner.memory
                sums.add(inner, 1)
        if each.opcode not in MOVES_NOTHING and not each.opcode.endswith(("-done", "-update")):
            sums.memory += _moved(computations, here, each)
    return sums


def _called(each: _Instruction, role: str) -> str:
    found = re.search(rf"\b{role}=%?([\w.-]+)", each.rest)
    return found[1] if found else ""


def _branches(each: _Instruction) -> Iterator[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
    if several:
        yield from re.findall(r"[\w.-]+", several[1])
    else:
        yield from (_called(each, role) for role in ("true_computation", "false_computation"))


def _trips(computations: Mapping[str, _Computation], loop: _Instruction) -> int | None:
    """Returns how often a loop runs: what the compiler says, or the one whole number that its condition compares with."""
    known = re.search(r'known_trip_count[^}]*?"?n"?:"?(\d+)', loop.rest)
    if known:
        return int(known[1])
    condition = computations[_called(loop, "condition")].instructions.values()
    found = [each.inside for each in condition if each.opcode == "constant" and each.shape.startswith("s32[]")]
    return int(found[0]) if len(found) == 1 else None


def _count(sums: _Sums, here: _Computation, each: _Instruction, kind: str, num_devices: int, chains: set[str]) -> None:
    """Adds a collective, once for each chain."""
    chain = re.search(r'chain_id="(\d+)"', each.rest)
    if chain:
        if chain[1] in chains:
            return
        chains.add(chain[1])
    if kind == "all-reduce" and here.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # printed as an all-reduce inside a fusion of that name, which then slices
    local = sum(array_bytes(here.instructions[name].shape) for name in each.operands if name in here.instructions)
    size = group_size(each.rest, num_devices)
    share = (size - 1) / size
    sent = {
        "all-gather": (size - 1) * local, "all-reduce": 2 * share * local, "reduce-scatter": share * local,
        "all-to-all": share * local, "collective-permute": local, "collective-broadcast": local,
    }[kind]  # fmt: skip
    sums.counts[kind] += 1
    sums.wire[kind] += sent


def group_size(attributes: str, num_devices: int) -> int:
    """Returns how many devices work together in a collective, by its printed `replica_groups`; all where none are given."""
    found = re.search(r"replica_groups=(\{\{[\d,]*\}|\[[\d,]+\]<=|mesh\[[^\]]*\] ?\{[^}]*\})", attributes)
    if not found:
        return num_devices
    text = found[1]
    if text.startswith("{{"):
        return len(text.strip("{}").split(","))
    if text.startswith("["):
        return int(text.strip("[]<=").split(",")[-1])
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", text.split("]")[0]))
    names = re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", text.split("]")[1])  # 'x', or 'x':(2)4: a part of 4
    return math.prod(int(part or sizes[name]) for name, _, part in names)


def _moved(computations: Mapping[str, _Computation], here: _Computation, each: _Instruction) -> float:
    """Returns the bytes that an instruction reads and writes in memory."""
    shapes = [here.instructions[name].shape for name in each.operands if name in here.instructions]
    inner = computations.get(_called(each, "calls")) if each.opcode == "fusion" else None
    if each.opcode in SLICES:
        return 2 * array_bytes(each.shape, on_chip=False)
    if each.opcode == "dynamic-update-slice":
        return 2 * array_bytes(shapes[1], on_chip=False)
    if inner is None:
        return sum(array_bytes(shape, on_chip=False) for shape in (*shapes, each.shape))
    return sum(_read(inner, i, shape) for i, shape in enumerate(shapes)) + _written(inner, each)


def _read(fused: _Computation, number: int, shape: str) -> float:
    """Returns the bytes that a fusion reads of an operand: where it is only sliced or updated in place, those of the slices."""
    whole, all_of_it = array_bytes(shape, on_chip=False), list(fused.instructions.values())
    name = next((p.name for p in all_of_it if p.opcode == "parameter" and p.inside == str(number)), "")
    users = [each for each in all_of_it if name in each.operands]
    if not users or not whole:
        return whole
    if all(each.opcode in SLICES for each in users):
        return min(whole, sum(array_bytes(each.shape) for each in users))
    if all(each.opcode == "dynamic-update-slice" and each.operands[0] == name for each in users):
        return 0.0
    return whole


def _written(fused: _Computation, each: _Instruction) -> float:
    """Returns the bytes that a fusion writes: of an update in place, those of the update."""
    root = fused.instructions.get(fused.root)
    if root is not None and root.opcode == "dynamic-update-slice" and "S(1)" not in each.shape:
        return array_bytes(fused.instructions[root.operands[1]].shape)
    return array_bytes(each.shape, on_chip=False)
