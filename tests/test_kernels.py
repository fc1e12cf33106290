"""Counting kernels from XLA's listing, and the command's mistakes; nothing is compiled."""

import importlib.util
import json
import os

import jax
import pytest
import tiny

from experiments.benchmarks import kernels
from experiments.benchmarks.kernels import Count

HLO = """
HloModule jit_plan
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a.1 = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %b = bf16[16,4]{1,0} parameter(1)
  %gemm_fusion_dot.1 = f32[8,4]{1,0} fusion(%a.1, %b), kind=kCustom, metadata={op_name="jit(plan)/dot"}
  ROOT %loop_add_fusion = (f32[8,4]{1,0}, s32[]) fusion(%gemm_fusion_dot.1), kind=kLoop
}
ENTRY %main {
  %while.2 = (s32[], f32[8,4]) while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %while.1 = (s32[], f32[8,4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %copy.1 = pred[10]{0} copy(%x), metadata={op_name="jit(plan)/copy"}
}
"""  # noqa: E501
NAMES = ("while.1", "gemm_fusion_dot.1", "while.2", "loop_add_fusion", "copy.1", "command_buffer")
# Protocol buffers leave a zero out: the first block is thunk 0.
METADATA = "".join(
    f'thunk_metadata {{\n  thunk_info {{ profile_annotation: "{name}"'
    + (f" thunk_id: {i}" if i else "")
    + " }\n}\n"
    for i, name in enumerate(NAMES)
)
SEQUENCE = """\
000: kWhile
  body:
    001: kKernel launch_dimensions: 1
    002: kWhile
      003: kKernel
    003: kKernel
005: kCommandBuffer
  004: kCopy
004: kCopy
006: kSequential
"""


def test_launches_are_multiplied_by_the_trips_of_their_loops():
    found = list(kernels.launches(HLO, METADATA, SEQUENCE))
    assert [(x.name, x.kind, x.times) for x in found] == [
        ("gemm_fusion_dot.1", "gemm", 6),
        ("loop_add_fusion", "other", 18),
        ("loop_add_fusion", "other", 6),
        ("command_buffer", "graph", 1),
        ("copy.1", "other", 1),
        ("copy.1", "other", 1),
    ]
    assert found[0].origin == "jit(plan)/dot"


def test_bytes_are_operands_and_results():
    found = list(kernels.launches(HLO, METADATA, SEQUENCE))
    # f32[8,16] and bf16[16,4] are read, f32[8,4] is written.
    assert found[0].megabytes == pytest.approx((4 * 128 + 2 * 64 + 4 * 32) / 1e6)
    assert kernels.count(found) == Count(32, 6, 1, pytest.approx(10_868 / 1e6))
    assert kernels.shape_bytes("(f32[2,3]{1,0}, pred[5]{0}, u64[])") == 24 + 5 + 8


def test_a_training_step_of_two_seeds_can_be_traced():
    """Nothing else runs it where no plugin for GPUs is installed."""
    config = tiny.agent(world_model__arranged_for="gpu")
    function, arguments, donated = kernels.step(config, 2, 1)
    state, means = jax.eval_shape(function, *arguments)
    assert jax.tree.structure(state) == jax.tree.structure(arguments[donated[0]])
    assert state.replay.rows.obs.shape == (2, kernels.CAPACITY, 1, kernels.OBS)
    assert means["loss/policy"].shape == (2,)


# --------------------------------------------------------------------------------- table


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """The command prepares its process for a device that is not there."""
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_growth_beyond_two_percent_is_named():
    stored = {"kernels": 100, "gemms": 10, "graphs": 1, "megabytes": 50.0}
    assert kernels.grown(Count(102, 10, 1, 50.9), stored) == []
    grown = kernels.grown(Count(103, 10, 2, 20.0), stored)
    assert grown == ["kernels 100 -> 103", "graphs 1 -> 2"]


def test_a_table_keeps_rows_of_its_version_of_jax_only(tmp_path):
    path = tmp_path / "new" / "table.json"
    kernels.save(path, {"plan": Count(1, 1, 1, 1.0)}, "1.0")
    kernels.save(path, {"update": Count(2, 1, 1, 1.0)}, "1.0")
    assert sorted(json.loads(path.read_text())["rows"]) == ["plan", "update"]
    kernels.save(path, {"update": Count(3, 1, 1, 1.0)}, "1.1")
    table = json.loads(path.read_text())
    assert table["jax"] == "1.1" and list(table["rows"]) == ["update"]


@pytest.fixture
def table(tmp_path):
    def make(version):
        path = tmp_path / "table.json"
        key = "plan, 5M, seeds 1, envs 1, po_mpc"
        counts = {"kernels": 1, "gemms": 1, "graphs": 1, "megabytes": 1.0}
        path.write_text(json.dumps({"jax": version, "rows": {key: counts}}))
        return f"--check={path}"

    return make


def test_tables_of_another_version_of_jax_are_not_compared(table, capsys):
    kernels.main(["plan", table("0.0.1")])
    out = capsys.readouterr().out
    assert out.startswith("skipped: ") and "made with jax 0.0.1" in out


@pytest.mark.parametrize(
    "argv,message",
    [
        (["plan", "--set", "world_model.arranged=gpu"], "world_model.arranged: unknown field"),
        (["plan", "--set", "mppi.num_samples=-1"], "agent.mppi.num_samples = -1: must be"),
        (["plan", "--size=6M"], "size = '6M': must be one of"),
        (["plan", "--seeds=0"], "--seeds=0: must be at least 1"),
        (["plan", "--check=nowhere.json"], "--check=nowhere.json: no table: "),
    ],
)
def test_wrong_arguments_are_one_line(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    refused(argv, message, capsys)


def test_rows_that_are_not_in_the_table_are_named(table, capsys):
    check = table(kernels.version("jax"))
    refused(["update", check], f"{check}: has no row 'update, 5M, seeds 1, envs 1, po_mpc'", capsys)


def test_a_missing_plugin_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(["plan"], "jax_cuda13_plugin: not installed; pip install jax-cuda13-plugin", capsys)


def refused(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        kernels.main(argv)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith(message) and err.count("\n") == 1, err
