"""What a program moves and computes: counted from programs whose answer is known, on 8 simulated devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlprod.parallel.flops import flops
from mlprod.parallel.traffic import Collective, array_bytes, group_size, traffic

P = PartitionSpec
N = 1024  # float32 on all devices together
LOCAL, WHOLE = N // 8 * 4, N * 4  # bytes


def program(body: Callable[[jax.Array], Any], out: Any, shape: tuple[int, ...] = (8,)) -> str:
    """The HLO of `body` over each device's part of float32[N]; the mesh's axes are `x`, `y` in the order of `shape`."""
    names = ("x", "y")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P(names), out_specs=out, check_vma=False)
    array = jax.ShapeDtypeStruct((N,), jnp.float32, sharding=NamedSharding(mesh, P(names)))
    return jax.jit(mapped).lower(array).compile().as_text()


def scanned(times: int) -> Callable[[jax.Array], jax.Array]:
    """An all-gather in a loop that runs so often."""

    def body(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (c + jax.lax.all_gather(c, "x", tiled=True).sum(), None), x, None, length=times)[0]

    return body


def nested(x: jax.Array) -> jax.Array:
    """A loop of 3 around a loop of 5."""
    return jax.lax.scan(lambda c, _: (scanned(5)(c), None), x, None, length=3)[0]


def next_of(x: jax.Array) -> jax.Array:
    """Each device's part goes to the next one."""
    return jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])


def several(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two all-reduces of arrays of other sizes, which the compiler may join to one with a tuple."""
    return jax.lax.psum(x, "x"), jax.lax.psum(x[:32].astype(jnp.int32), "x")


PROGRAMS = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "x", tiled=True), P(), (8,), "all-gather", 1, 7 / 8 * WHOLE),
    "all-reduce": (lambda x: jax.lax.psum(x, "x"), P(), (8,), "all-reduce", 1, 2 * 7 / 8 * LOCAL),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "x", tiled=True), P("x"), (8,), "reduce-scatter", 1, 7 / 8 * LOCAL),
    "all-to-all": (lambda x: jax.lax.all_to_all(x.reshape(8, -1), "x", 0, 0), P("x"), (8,), "all-to-all", 1, 7 / 8 * LOCAL),
    "permute": (next_of, P("x"), (8,), "collective-permute", 1, LOCAL),
    "a loop": (scanned(5), P("x"), (8,), "all-gather", 5, 5 * 7 / 8 * WHOLE),
    "a loop in a loop": (nested, P("x"), (8,), "all-gather", 15, 15 * 7 / 8 * WHOLE),
    "one axis of two": (lambda x: jax.lax.psum(x, "y"), P("x"), (2, 4), "all-reduce", 1, 2 * 3 / 4 * LOCAL),
    "the other axis": (lambda x: jax.lax.psum(x, "x"), P("y"), (2, 4), "all-reduce", 1, 2 * 1 / 2 * LOCAL),
}  # fmt: skip


@pytest.mark.parametrize("body, out, shape, kind, count, sent", PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_collective_is_counted_as_often_as_it_runs(
    body: Any, out: Any, shape: tuple[int, ...], kind: str, count: int, sent: float
) -> None:
    """Its kind, how often, and what a device sends by the ring algorithm, to the byte."""
    found = traffic(program(body, out, shape), 8)
    assert found.collectives == (Collective(kind, count, sent),)
    assert found.unknown_loops == 0


def test_a_tuple_is_the_sum_of_its_arrays() -> None:
    """However the compiler joins them."""
    found = traffic(program(several, (P(), P())), 8)
    assert [each.kind for each in found.collectives] == ["all-reduce"]
    assert found.wire_bytes == 2 * 7 / 8 * (LOCAL + 32 * 4)


# As a TPU's compiler prints: started and awaited, wrapped, repeated in a chain, fused with a slice, in branches, in a loop.
HEAD = "HloModule jit_f, is_scheduled=true\n\n"
ARGUMENT = "  %p = f32[128]{0:T(128)} parameter(0)\n"
GROUPS = "channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}"
GATHER = f"f32[1024]{{0:T(1024)}} all-gather(%p), {GROUPS}, dimensions={{0}}"
PRINTED = {
    "started and awaited": (
        f"ENTRY %main (p: f32[128]) -> f32[1024] {{\n{ARGUMENT}"
        f"  %s = (f32[128]{{0:T(128)}}, f32[1024]{{0:T(1024)S(1)}}) all-gather-start(%p), {GROUPS}, dimensions={{0}}\n"
        "  ROOT %d = f32[1024]{0:T(1024)} all-gather-done(%s)\n}\n",
        {"all-gather": (1, 3584.0)},
    ),
    "wrapped": (
        f"%inner (p: f32[128]) -> f32[1024] {{\n{ARGUMENT}  ROOT %g = {GATHER}\n}}\n\n"
        f"ENTRY %main (q: f32[128]) -> f32[1024] {{\n  %q = f32[128]{{0:T(128)}} parameter(0)\n"
        "  %s = ((f32[128]), f32[1024], u32[]) async-start(%q), calls=%inner\n"
        "  ROOT %d = f32[1024]{0} async-done(%s), calls=%inner\n}\n",
        {"all-gather": (1, 3584.0)},
    ),
    "a chain": (
        "".join(
            f"%f.{i} (p: f32[128]) -> f32[1024] {{\n{ARGUMENT}"
            f'  ROOT %g.{i} = {GATHER}, frontend_attributes={{chain_id="{i // 2}"}}\n}}\n\n'
            for i in range(4)
        )
        + f"ENTRY %main (p: f32[128]) -> f32[1024] {{\n{ARGUMENT}"
        + "".join(f"  %c.{i} = f32[1024]{{0}} fusion(%p), kind=kCustom, calls=%f.{i}\n" for i in range(4))
        + "  ROOT %t = (f32[1024]) tuple(%c.3)\n}\n",
        {"all-gather": (2, 7168.0)},
    ),
    "fused with a slice": (
        f"%all-reduce-scatter.1 (p: f32[128]) -> f32[16] {{\n{ARGUMENT}"
        f"  %r = f32[128]{{0}} all-reduce(%p), {GROUPS}, to_apply=%add\n"
        "  ROOT %l = f32[16]{0} slice(%r), slice={[0:16]}\n}\n\n"
        f"ENTRY %main (p: f32[128]) -> f32[16] {{\n{ARGUMENT}"
        "  ROOT %o = f32[16]{0} fusion(%p), calls=%all-reduce-scatter.1\n}\n",
        {"reduce-scatter": (1, 448.0)},
    ),
    "branches": (
        f"%none (p: f32[128]) -> f32[128] {{\n{ARGUMENT}  ROOT %n = f32[128]{{0}} negate(%p)\n}}\n\n"
        f"%some (p: f32[128]) -> f32[128] {{\n{ARGUMENT}  ROOT %r = f32[128]{{0}} all-reduce(%p), {GROUPS}, to_apply=%add\n}}\n\n"
        f"ENTRY %main (p: f32[128], i: s32[]) -> f32[128] {{\n{ARGUMENT}  %i = s32[] parameter(1)\n"
        "  ROOT %c = f32[128]{0} conditional(%i, %p, %p), branch_computations={%none, %some}\n}\n",
        {"all-reduce": (1, 896.0)},
    ),
    "a loop without its count": (
        f"%body (p: (s32[], f32[128])) -> (s32[], f32[128]) {{\n  %q = (s32[], f32[128]{{0}}) parameter(0)\n"
        f"  %p = f32[128]{{0}} get-tuple-element(%q), index=1\n  %g = {GATHER}\n"
        "  ROOT %t = (s32[], f32[128]{0}) tuple(%q, %p)\n}\n\n"
        "%condition (p: (s32[], f32[128])) -> pred[] {\n  %q = (s32[], f32[128]{0}) parameter(0)\n"
        "  %n = s32[]{:T(128)} constant(6)\n  ROOT %l = pred[] compare(%q, %n), direction=LT\n}\n\n"
        f"ENTRY %main (p: f32[128]) -> (s32[], f32[128]) {{\n{ARGUMENT}"
        "  ROOT %w = (s32[], f32[128]{0}) while(%p), condition=%condition, body=%body\n}\n",
        {"all-gather": (6, 21504.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("text, wanted", PRINTED.values(), ids=list(PRINTED))
def test_a_program_as_a_tpu_prints_it(text: str, wanted: dict[str, tuple[int, float]]) -> None:
    """Each collective once, by the name of what goes over the wire."""
    found = traffic(HEAD + text, 8)
    assert {each.kind: (each.count, each.wire_bytes) for each in found.collectives} == wanted
    assert found.unknown_loops == 0


def test_a_loop_of_unknown_length_is_told() -> None:
    """It counts once."""
    text = PRINTED["a loop without its count"][0].replace("constant(6)", "parameter(1)")
    found = traffic(HEAD + text, 8)
    assert (found.unknown_loops, found.wire_bytes) == (1, 3584.0)


GROUP_SIZES = {
    "replica_groups={{0,1,2},{3,4,5}}": 3, "replica_groups=[2,4]<=[8]": 4, "replica_groups=[4,2]<=[2,4]T(1,0)": 2,
    "replica_groups=mesh['x'=4,'y'=4] {'x'}": 4, "replica_groups=mesh['x'=4,'y'=2] {'x','y'}": 8,
    "replica_groups=mesh['x'=16] {'x':(2)4}": 4, "dimensions={0}": 8,
}  # fmt: skip


@pytest.mark.parametrize("attributes, size", GROUP_SIZES.items())
def test_groups_are_read_in_every_form(attributes: str, size: int) -> None:
    """Lists, iota, named axes and parts of them; all devices where none are named."""
    assert group_size(f"channel_id=1, {attributes}, use_global_device_ids=true", 8) == size


def test_bytes_of_printed_shapes() -> None:
    """By dtype, of tuples, scalars and tokens; what lies on the chip can be left out."""
    assert array_bytes("bf16[256,256]{1,0:T(8,128)(2,1)}") == 2 * 256 * 256
    assert array_bytes("(f32[3]{0:T(128)}, /*index=5*/pred[7]{0}, s4[8]{0}, f8e4m3fn[5], token[])") == 12 + 7 + 4 + 5
    assert array_bytes("u32[]{:T(128)}") == 4
    assert array_bytes("(f32[8]{0:T(128)S(1)}, f32[2]{0:T(128)})", on_chip=False) == 8


def test_memory_bytes_are_those_of_operands_and_results() -> None:
    """An elementwise program reads its argument and writes its result; a loop over rows reads each row once."""
    array = jax.ShapeDtypeStruct((64, 1024), jnp.float32)
    whole = 64 * 1024 * 4
    assert traffic(jax.jit(lambda x: x * 2 + 1).lower(array).compile().as_text(), 1).memory_bytes == 2 * whole

    def summed(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, row: (c + jnp.sin(row), None), jnp.zeros(1024), x)[0]

    found = traffic(jax.jit(summed).lower(array).compile().as_text(), 1).memory_bytes
    assert whole < found < 6 * whole  # the carry is read and written with each row, and copied at most twice: not 64 times all


def test_a_text_without_a_program_is_refused() -> None:
    """It is never taken as one that moves nothing."""
    with pytest.raises(ValueError, match="no ENTRY"):
        traffic("HloModule jit_f\n", 8)


A, B = jnp.zeros((16, 32)), jnp.zeros((32, 8))
SQUARE = jnp.zeros((32, 32))  # a product with it takes 4 times as much as one with `B`
PRODUCT = 2.0 * 16 * 32 * 8
IMAGE, KERNEL = jnp.zeros((1, 3, 10, 10)), jnp.zeros((4, 3, 3, 3))


def mapped(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product on each of 8 devices: two rows of `a` times `b`."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))(a, b)


COUNTED = {
    "a product": (jnp.matmul, (A, B), PRODUCT),
    "a batch of products": (jnp.matmul, (jnp.zeros((5, 16, 32)), jnp.zeros((5, 32, 8))), 5 * PRODUCT),
    "its gradients": (jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), (A, B), 3 * PRODUCT),
    "computed again": (jax.grad(jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum()), argnums=(0, 1)), (A, B), 4 * PRODUCT),
    "a loop": (lambda a, b: jax.lax.scan(lambda c, _: (c + a @ b, None), jnp.zeros((16, 8)), length=7)[0], (A, B), 7 * PRODUCT),
    "the larger branch": (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T, lambda: a @ SQUARE), (A, B), 4 * PRODUCT),
    "a function in it": (lambda a, b: jax.jit(jnp.matmul)(a, b) * 2, (A, B), PRODUCT),
    "on each device": (mapped, (A, B), PRODUCT),
    "a convolution": (lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), (IMAGE, KERNEL), 2.0 * 4 * 8 * 8 * 3 * 9),
}  # fmt: skip


@pytest.mark.parametrize("function, arguments, wanted", COUNTED.values(), ids=list(COUNTED))
def test_operations_are_counted_as_often_as_they_run(function: Any, arguments: tuple[Any, ...], wanted: float) -> None:
    """Two a multiply-add, of all devices together."""
    assert flops(jax.jit(function).trace(*arguments).jaxpr) == wanted
