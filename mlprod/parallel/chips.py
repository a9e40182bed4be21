"""TPU chips and slices by name: what a chip can do at best, and which slices there are.

Promise: a slice that this accepts is one that can be asked for. The peaks are published ones, never measured.
Price: a table to keep. Source: the system page of each version in the Cloud TPU documentation (peak bf16 compute, memory and
its bandwidth, interconnect: half of the bidirectional figure is what a chip sends; shapes), and for the links of v4 Jouppi et
al., arXiv:2304.01433 (six of 50 GB/s).
"""

import math
import re
from dataclasses import dataclass

from mlprod.errors import LayoutError, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One version of TPU. Rates are peaks of one chip."""

    kind: str  # as JAX names the device
    memory: float  # bytes
    flops: float  # a second, of matrix products whose factors are bf16, as a TPU's default precision rounds float32 too
    memory_rate: float  # bytes a second
    wire_rate: float  # bytes a second sent to other chips of the slice, over all links
    dims: int  # of a slice's torus
    options: tuple[tuple[str, str], ...] = ()  # of the compiler's description: one device a chip, as a TPU VM has


CHIPS = {
    "v4": Chip(
        kind="TPU v4", memory=32 * 2**30, flops=275e12, memory_rate=1200e9, wire_rate=300e9, dims=3,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(kind="TPU v5 lite", memory=16e9, flops=197e12, memory_rate=819e9, wire_rate=200e9, dims=2),
    "v5p": Chip(kind="TPU v5", memory=95 * 2**30, flops=459e12, memory_rate=2765e9, wire_rate=600e9, dims=3),
    "v6e": Chip(kind="TPU v6 lite", memory=32e9, flops=918e12, memory_rate=1600e9, wire_rate=400e9, dims=2),
}  # fmt: skip
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # below a cube of 4 x 4 x 4; above it sizes are multiples of 4


@dataclass(frozen=True, slots=True)
class Slices:
    """So many equal slices of a TPU."""

    version: str
    shape: tuple[int, ...]
    number: int

    @property
    def chip(self) -> Chip:
        """What its chips can do."""
        return CHIPS[self.version]

    @property
    def name(self) -> str:
        """Of one slice, such as `v5e:4x4`."""
        return f"{self.version}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return self.number * math.prod(self.shape)


def padded_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the bytes that an array takes in a TPU's memory: in tiles of 128 lanes by 8 sublanes of 4 bytes, or 1, 2 or 4
    sublanes where the array has no more; of the last two dims the one along the lanes that takes less."""
    if len(shape) < 2:
        size = math.prod(shape)
        return _up(size, 128 if size <= 1024 else 1024) * itemsize
    *others, a, b = shape
    sublanes = 32 // itemsize

    def rows(size: int) -> int:
        return _up(size, sublanes) if size > sublanes // 2 else max(1 << (size - 1).bit_length(), 4 // itemsize)

    return math.prod(others) * min(rows(a) * _up(b, 128), rows(b) * _up(a, 128)) * itemsize


def _up(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


def parse_slices(name: str, number: int) -> Slices:
    """Returns the slices of a name such as `v5e:4x4`, sizes in any order.

    Raises:
        LayoutError: there is no such chip, or no slice of it of this shape.
    """
    version, _, text = name.partition(":")
    if version not in CHIPS:
        raise LayoutError(f"--topology={name}: there is no chip {version!r}{nearest(version, CHIPS)}")
    shape = tuple(sorted(map(int, text.split("x")))) if re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2})*", text) else ()
    if not _exists(shape, CHIPS[version].dims):
        known = ", ".join("x".join(map(str, there)) for there in (FLAT if CHIPS[version].dims == 2 else SMALL))
        more = "" if CHIPS[version].dims == 2 else ", and multiples of 4 such as 4x4x8"
        raise LayoutError(f"--topology={name}: there is no slice {text!r} of {version}; there are {known}{more}")
    if number < 1:
        raise LayoutError(f"--num-slices={number} must be 1 or more")
    return Slices(version, shape, number)


def _exists(shape: tuple[int, ...], dims: int) -> bool:
    if dims == 2:
        return shape in FLAT
    cubes = len(shape) == 3 and all(size % 4 == 0 for size in shape)
    return shape in SMALL or cubes
