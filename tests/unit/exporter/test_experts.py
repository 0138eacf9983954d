"""Adapters over experts are taken apart as PEFT put them together."""

import pytest

from exporter.domain.experts import checkpoint_name, expert_stack
from lexicon.faults import Fault, FaultCode

HALF, HIDDEN = 6, 4


def matrices(style: str) -> dict[str, tuple[int, int]]:
    stem, gate, up, down = {
        "mixtral": ("model.layers.0.block_sparse_moe.experts", "w1", "w3", "w2"),
        "qwen": ("model.layers.0.mlp.experts", "gate_proj", "up_proj", "down_proj"),
    }[style]
    found = {"model.layers.0.self_attn.q_proj.weight": (4, 4)}
    for expert in range(3):
        found[f"{stem}.{expert}.{gate}.weight"] = (HALF, HIDDEN)
        found[f"{stem}.{expert}.{up}.weight"] = (HALF, HIDDEN)
        found[f"{stem}.{expert}.{down}.weight"] = (HIDDEN, HALF)
    return found


@pytest.mark.parametrize("style", ["mixtral", "qwen"])
def test_gate_and_up_share_a_parameter_one_above_the_other(style: str) -> None:
    stack = expert_stack(
        "model.layers.0.mlp.experts.base_layer",
        rows=2 * HALF,
        columns=HIDDEN,
        matrices=matrices(style),
    )
    assert stack is not None
    assert stack.parameter == "model.layers.0.mlp.experts.gate_up_proj"
    assert stack.expert_count == 3
    assert len({part.target for part in stack.parts}) == 6
    assert {(part.first_row, part.end_row) for part in stack.parts} == {
        (0, HALF),
        (HALF, 2 * HALF),
    }


def test_the_outer_wrapper_is_the_down_projection() -> None:
    stack = expert_stack(
        "model.layers.0.mlp.experts", rows=HIDDEN, columns=HALF, matrices=matrices("mixtral")
    )
    assert stack is not None
    assert stack.parameter == "model.layers.0.mlp.experts.down_proj"
    assert [part.expert for part in stack.parts] == [0, 1, 2]


def test_a_shape_that_no_parameter_has_means_another_base() -> None:
    with pytest.raises(Fault) as caught:
        expert_stack("model.layers.0.mlp.experts", rows=5, columns=5, matrices=matrices("qwen"))
    assert caught.value.code is FaultCode.EXPORT_WRONG_BASE


def test_other_modules_are_no_stacks() -> None:
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.9.mlp.experts"):
        assert expert_stack(module, rows=4, columns=4, matrices=matrices("qwen")) is None


def test_names_of_mixtral_are_brought_to_those_of_its_checkpoint() -> None:
    known = {"model.layers.0.block_sparse_moe.gate.weight": 1, "model.layers.0.mlp.up.weight": 1}
    name = checkpoint_name("model.layers.0.mlp.gate.weight", known)
    assert name == "model.layers.0.block_sparse_moe.gate.weight"
    assert checkpoint_name("model.layers.0.mlp.up.weight", known) in known
    assert checkpoint_name("model.layers.0.mlp.none.weight", known) not in known
