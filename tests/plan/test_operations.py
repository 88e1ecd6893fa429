"""Where bytes go, in the text of a program."""

import pytest

from diffusion_distill.plan.operations import Operation, operations

# A loop of 10 turns around a fusion of two inputs, and a copy outside. A tile of 8 x 128 holds
# 4 x 64 numbers; what is inside the fusion is part of it.
TEXT = """\
HloModule jit_update, is_scheduled=true

%fused (a: f32[4,64], b: bf16[256]) -> (f32[4,64], f32[4]) {
  %inside = f32[4,64]{1,0:T(8,128)} add(%a, %a), metadata={op_name="jit(update)/inside"}
}

%body (p: (f32[4,64], bf16[256])) -> (f32[4,64], bf16[256]) {
  %x = f32[4,64]{1,0:T(8,128)} get-tuple-element(%p), index=0
  %y = bf16[256]{0:T(256)(128)(2,1)} get-tuple-element(%p), index=1
  %f.1 = (f32[4,64]{1,0:T(8,128)}, /*index=1*/f32[4]{0:T(128)}) fusion(%x, %y), kind=kLoop, \
calls=%fused, metadata={op_name="jit(update)/while/body/closed_call/UNet/up_0.block_1/add"}
  %f.2 = bf16[256]{0:T(256)(128)(2,1)} fusion(%y), kind=kLoop, calls=%fused, \
metadata={op_name="jit(update)/while/body/closed_call/UNet/up_0.block_2/add"}
}

%condition (p: (f32[4,64], bf16[256])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %m), direction=LT
}

ENTRY %main (p: f32[64,4]) -> f32[64,4] {
  %p.1 = f32[64,4]{0,1:T(4,128)} parameter(0)
  %while.1 = (f32[4,64], bf16[256]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
  %c.1 = f32[64,4]{1,0:T(8,128)} copy(%p.1)
}
"""


def test_operations_by_their_source():
    tile, vector = 8 * 128 * 4, 256 * 2
    blocks = (tile + vector + tile + 128 * 4) + (vector + vector)
    assert operations(TEXT) == [
        Operation("UNet/up_0.block_*/add", 20, 10 * blocks),
        Operation("copy", 1, 4 * 128 * 4 + 64 * 128 * 4),
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["%s = (f32[100], f32[400]) all-gather-start(%x)", "%d = f32[400] all-gather-done(%s)"],
         2000),
        (["%s = f32[100] all-reduce-start(%x)", "%d = f32[100] all-reduce-done(%s)"], 800),
        (["%s = (f32[100]{0:S(1)}, f32[100], u32[]) copy-start(%x)", "%d = f32[100] copy-done(%s)"],
         804),
        (["%s = ((f32[100]), f32[100], u32[]) async-start(%x), calls=%once",
          "%d = f32[100] async-done(%s)"], 804),
        (["%c = f32[100] call(%x), to_apply=%once"], 800),
        (["%c = f32[100] conditional(%i, %x, %x), branch_computations={%once, %again}"], 1600),
        (["%r = f32[] reduce(%x, %x), to_apply=%once"], 804),
    ],
)  # fmt: skip
def test_what_is_started_counts_once_and_what_is_called_as_it_stands(lines, expected):
    text = "\n".join(
        [
            *(f"%{name} (a: f32[100]) -> f32[100] {{\n"
              f"  %a = f32[100] parameter(0)\n  ROOT %n = f32[100] negate(%a)\n}}\n"
              for name in ("once", "again")),
            "ENTRY %main (p: f32[100]) -> f32[100] {",
            "  %x = f32[100] parameter(0)",
            *(f"  {line}" for line in lines),
            "}",
        ]
    )  # fmt: skip
    assert sum(operation.bytes for operation in operations(text)) == expected


@pytest.mark.parametrize("name", ["student", "sampler"])
def test_of_a_program_it_is_about_what_the_compiler_counts(program, name):
    one = program(name, **{"runtime.updates_per_call": 1})
    compiled = one.function.trace(*one.arguments).lower().compile()
    total = sum(operation.bytes for operation in operations(compiled.as_text()))
    # The compiler counts less of an operand that is read in part, and nothing of small constants.
    assert total == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.25)
