"""What is read from a compiled program equals what was written into it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_lite.planning import collectives, hlo, products, traffic

LAYERS, WIDTH, ROWS = 5, 16, 32


def chain(kernels, x):
    """Gradient of a scanned chain of products, each layer computed again in the backward pass."""

    @jax.checkpoint
    def layer(x, kernel):
        return jnp.sin(x @ kernel)

    def loss(kernels):
        return jnp.sum(jax.lax.scan(lambda x, k: (layer(x, k), None), x, kernels)[0])

    return jax.grad(loss)(kernels)


@pytest.fixture(scope="module")
def program():
    kernels, x = np.ones((LAYERS, WIDTH, WIDTH), np.float32), np.ones((ROWS, WIDTH), np.float32)
    return hlo.parse(jax.jit(chain).lower(kernels, x).compile().as_text())


def test_loop_bodies_count_as_often_as_they_run(program):
    assert [trips for _, trips in program.loops] == [LAYERS, LAYERS]
    once = 2 * ROWS * WIDTH * WIDTH * LAYERS
    flops = products.matmul_flops(program)
    assert flops["forward"] == once
    assert flops["backward"] == 2 * once  # of the input and of the kernel
    assert flops["recomputed"] == once
    assert flops["update"] == 0


def test_busy_time_is_bounded_by_its_parts(program):
    moved, flops = traffic.hbm_bytes(program), sum(products.matmul_flops(program).values())
    assert moved > LAYERS * WIDTH * WIDTH * 4 * 3
    busy = traffic.busy_seconds(program, 1e9, 1e9)
    assert max(moved, flops) / 1e9 <= busy <= (moved + flops) / 1e9


def test_buffers_name_the_line_that_made_them(program):
    rows = traffic.largest_buffers(program)
    assert [row["bytes"] for row in rows] == sorted((r["bytes"] for r in rows), reverse=True)
    assert any("test_hlo.py:" in row["source"] for row in rows)


MESH = {"data": 2, "fsdp": 4}


def test_collectives_by_kind_and_mesh_axis():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def body(x):  # [2, 8] on each device
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # [8, 8]: 256 bytes
        total = jax.lax.psum(whole, "data")
        part = jax.lax.psum_scatter(total, "fsdp", tiled=True)
        return jax.lax.ppermute(part, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"),
                                 check_vma=False))  # fmt: skip
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    program = hlo.parse(step.lower(x).compile().as_text())
    found = {
        c.kind: (collectives.mesh_axes(c.members, MESH), c.sent)
        for c in collectives.collectives(program, 8)
    }
    assert found["all-gather"] == ("fsdp", 256 * 3 / 4)
    assert found["all-reduce"] == ("data", 2 * 256 / 2)
    if "reduce-scatter" in found:  # a CPU may make it an all-reduce and a slice
        assert found["reduce-scatter"] == ("fsdp", 64 * 3)
    assert found["collective-permute"] == ("fsdp", 64)


@pytest.mark.parametrize(
    ("text", "members", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", (0, 4), "data"),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3), "fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4), "data"),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3), "fsdp"),
        ("replica_groups=mesh['a'=8] {'a'}", tuple(range(8)), "data*fsdp"),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1), "fsdp"),
        ("channel_id=1", tuple(range(8)), "data*fsdp"),
    ],
)
def test_groups_as_xla_writes_them(text, members, axes):
    assert collectives.group(text, 8) == members
    assert collectives.mesh_axes(members, MESH) == axes


TPU = """HloModule jit_f

%fused (p0: bf16[4,8]) -> bf16[16,8] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  ROOT %gather = bf16[16,8]{1,0:T(8,128)} all-gather(%p0), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%fused.1 (p0: bf16[4,8]) -> bf16[16,8] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  ROOT %gather.1 = bf16[16,8]{1,0:T(8,128)} all-gather(%p0), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%body (s: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %s = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%s), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %start = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fused
  %rest = bf16[16,8]{1,0} fusion(%x), kind=kCustom, calls=%fused.1
  %conv = f32[4,6]{1,0} convolution(%x, %x), window={size=3 pad=1_1}, dim_labels=0bf_0io->b0f
  ROOT %t = (s32[], bf16[4,8]) tuple(%next, %x)
}

%condition (s: (s32[], bf16[4,8])) -> pred[] {
  %s = (s32[], bf16[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], bf16[4,8]) tuple(%zero, %a)
  %w = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_a_tpu_loop_without_a_known_count_and_a_gather_in_two_fusions():
    """The gather is one logical collective that XLA has spread over two fusions."""
    program = hlo.parse(TPU)
    assert program.loops == [("body", 6)]
    [gather] = collectives.collectives(program, 4)
    assert (gather.kind, gather.times, gather.sent) == ("all-gather", 6, 16 * 8 * 2 * 3 / 4)
    assert gather.asynchronous


COPIES = """HloModule m

%cut (p: f32[64,8]) -> f32[16,8] {
  %p = f32[64,8]{1,0} parameter(0)
  ROOT %slice.1 = f32[16,8]{1,0:T(8,128)S(1)} slice(%p), slice={[0:16], [0:8]}
}

ENTRY %main (a: f32[64,8]) -> f32[64,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %in = (f32[64,8]{1,0:S(1)}, f32[64,8]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %near = f32[64,8]{1,0:S(1)} copy-done(%in)
  %part = ((f32[64,8]{1,0}), f32[16,8]{1,0:S(1)}, u32[]{:S(2)}) async-start(%a), calls=%cut
  %rows = f32[16,8]{1,0:S(1)} async-done(%part)
  %sum = f32[64,8]{1,0:S(1)} add(%near, %near)
  %out = (f32[64,8]{1,0}, f32[64,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%sum)
  ROOT %far = f32[64,8]{1,0} copy-done(%out)
}
"""


SLICED = """HloModule m

%row (stack: bf16[64,4,8], i: s32[]) -> bf16[4,8] {
  %stack = bf16[64,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = bf16[1,4,8]{2,1,0} dynamic-slice(%stack, %i, %i, %i), dynamic_slice_sizes={1,4,8}
  ROOT %flat = bf16[4,8]{1,0} bitcast(%one)
}

%product (x: bf16[16,4], kernels: bf16[64,4,8], n: s32[]) -> bf16[16,8] {
  %x = bf16[16,4]{1,0} parameter(0)
  %kernels = bf16[64,4,8]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %kernel = bf16[4,8]{1,0} fusion(%kernels, %n), kind=kLoop, calls=%row
  ROOT %dot.1 = bf16[16,8]{1,0} convolution(%x, %kernel), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[16,4], w: bf16[64,4,8], k: s32[]) -> bf16[16,8] {
  %a = bf16[16,4]{1,0} parameter(0)
  %w = bf16[64,4,8]{2,1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %out = bf16[16,8]{1,0} fusion(%a, %w, %k), kind=kOutput, calls=%product
}
"""


def test_of_stacked_kernels_a_product_reads_its_own_also_in_a_fusion_within_a_fusion():
    moved = traffic.hbm_bytes(hlo.parse(SLICED))
    assert moved == 2 * (16 * 4 + 4 * 8 + 16 * 8) + 4  # and the place, an int


def test_asynchronous_copies_move_each_byte_once_and_take_no_time_of_their_own():
    program = hlo.parse(COPIES)
    assert traffic.hbm_bytes(program) == (64 + 16 + 64) * 8 * 4  # in, a slice in, out
    assert traffic.busy_seconds(program, 1.0, 1.0) == 0  # all else is in fast memory


@pytest.mark.parametrize(
    ("n", "kernel", "out", "stride", "low", "dilate", "pairs"),
    [
        (8, 1, 8, 1, 0, 1, 8),  # a plain product
        (4, 3, 4, 1, 1, 1, 4 * 3 - 2),  # two of them meet padding
        (4, 4, 1, 3, 0, 4, 1),  # dilated input: only the first is no hole
        (1, 16, 16, 1, 15, 1, 16),  # a batch axis, as TPU programs write one
    ],
)
def test_window_positions_that_meet_an_element(n, kernel, out, stride, low, dilate, pairs):
    assert products._window_pairs(n, kernel, out, stride, low, dilate, 1) == pairs


def test_window_positions_are_those_of_trying_all():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, kernel, out, stride, dilate, spread = (int(v) for v in rng.integers(1, 9, 6))
        low = int(rng.integers(-3, 9))
        at = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * spread
        tried = np.sum((at >= 0) & (at <= (n - 1) * dilate) & (at % dilate == 0))
        assert products._window_pairs(n, kernel, out, stride, low, dilate, spread) == tried
    assert products._window_pairs(10**6, 1, 10**6, 1, 0, 1, 1) == 10**6
    assert products._window_pairs(1, 10**6, 10**6, 1, 10**6 - 1, 1, 1) == 10**6


def test_sizes_leave_out_what_lies_in_fast_memory():
    shape = "(bf16[4,8]{1,0:T(8,128)S(1)}, f32[2,2]{1,0}, pred[])"
    assert hlo.size(shape) == 64 + 16 + 1
    assert hlo.size(shape, largest=True) == 64
    assert hlo.size(shape, memory="hbm") == 17


def test_messages_of_the_compiler_when_memory_is_short():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (43.50G) exceeds available HBM (15.75G). HLO module: jit_f."
    )
    needs = traffic.out_of_memory(message)
    assert needs == {"used": 43.5 * 2**30, "limit": 15.75 * 2**30, "whole": False}
    assert traffic.out_of_memory("Used 20.00G of 15.75G hbm. Exceeded")["whole"]
    assert traffic.out_of_memory("INTERNAL: something else") is None


def test_memory_as_the_compiler_laid_it_out():
    text = """BufferAssignment:
allocation 0: size 4096, page 0, thread-local:
 value: <2778 add.894 @0> (size=4096,offset=0): f32[]
allocation 1: size 12288, page 0, parameter 11, shape |f32[384,8]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 2048, page 0, parameter 37, shape |s32[4,32]| at ShapeIndex {}:
allocation 3: size 512, page 0, constant:
allocation 4: size 1024, page 0, maybe-live-out:
allocation 5: size 5632, color 6, page 0, preallocated-temp:
allocation 6: size 196608, color 5, page 0, preallocated-temp:
allocation 7: size 65536, page 0, preallocated-temp:
"""
    found = traffic.allocated(text)
    assert found == {
        "arguments": 12288 + 2048,
        "temporary": 65536,
        "host": 196608,
        "total": 12288 + 2048 + 1024 + 65536,
    }
