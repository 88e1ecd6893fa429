"""Collectives in the text of a program."""

import pytest

from diffusion_distill.plan.hlo import Collective, collectives

# An update of 10 in a loop, each of 4 parts in a loop: one collective outside, one in each loop.
LOOPS = """\
HloModule jit_update, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %r = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ar.1 = f32[8,4]{1,0:T(8,128)} all-reduce(%g), channel_id=1, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, to_apply=%add
}

%inner_condition (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%outer (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%inner_condition, body=%inner
  %ag = bf16[16,4]{1,0} all-gather(%x), replica_groups=[4,2]<=[8], dimensions={0}
}

%outer_condition (p: (s32[], f32[8,4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %m), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %while.2 = (s32[], f32[8,4]) while(%t), condition=%outer_condition, body=%outer, \
backend_config={"known_trip_count":{"n":"10"}}
  %ar.2 = (f32[100]{0}, s32[]{:T(128)}) all-reduce(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, \
to_apply=%add
  %gte = f32[100]{0} get-tuple-element(%ar.2), index=0
}
"""


def test_loops_count_with_their_turns():
    assert collectives(LOOPS, 8) == [
        Collective("all-gather", 2, 10, 10 * 2 * 16 * 4),
        Collective("all-reduce", 8, 41, 40 * 4 * 8 * 4 + 4 * 100 + 4),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%c = f32[10]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}",
         Collective("reduce-scatter", 2, 1, 80)),
        ("%c = (f32[10]{0}, f32[40]{0}) all-gather-start(%x), replica_groups={}",
         Collective("all-gather", 4, 1, 160)),
        ("%c = (f32[10]{0}, f32[5]{0}) all-reduce-start(%x, %y), replica_groups=[1,4]<=[4]",
         Collective("all-reduce", 4, 1, 60)),
        ("%c = (u8[10]{0}, u8[10]{0}) collective-permute-start(%x), source_target_pairs={{0,1}}",
         Collective("collective-permute", 4, 1, 10)),
    ],
)  # fmt: skip
def test_kinds(line, expected):
    assert collectives(f"ENTRY %main (p: f32[]) -> f32[] {{\n  {line}\n}}\n", 4) == [expected]


def test_a_sum_of_which_each_keeps_its_slice_is_a_reduce_scatter():
    """As libtpu writes it: 4 devices add up 8 x 4 numbers, and each keeps 8 x 1 of them."""
    text = """\
%all-reduce-scatter.3.clone.1 (input: f32[8,4]) -> f32[8,1] {
  %ar = f32[8,4]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %ds = f32[8,1]{1,0} dynamic-slice(%ar, %zero, %at), dynamic_slice_sizes={8,1}
}

ENTRY %main (p: f32[8,4]) -> f32[8,1] {
  ROOT %fusion.1 = f32[8,1] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3.clone.1
}
"""
    assert collectives(text, 4) == [Collective("reduce-scatter", 4, 1, 4 * 8 * 4)]


def test_what_finishes_a_collective_is_not_another_and_one_device_has_none():
    text = "ENTRY %main (p: f32[]) -> f32[] {{\n  {}\n}}\n"
    assert collectives(text.format("%c = f32[9] all-reduce-done(%x)"), 4) == []
    alone = "%c = f32[9] all-reduce(%x), replica_groups={{0},{1}}, to_apply=%add"
    assert collectives(text.format(alone), 2) == []


def test_what_a_ring_sends():
    """Of n devices with B bytes: 2 (n - 1) / n B for an all-reduce, half of it for its halves."""
    assert Collective("all-reduce", 4, 1, 100).sent == 150
    assert Collective("reduce-scatter", 4, 1, 100).sent == 75
    assert Collective("all-gather", 4, 1, 100).sent == 75
    assert Collective("collective-permute", 4, 1, 100).sent == 100
