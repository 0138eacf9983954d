"""What goes together on a node: torch and driver, bitsandbytes and Windows, xformers and cards."""

from typing import Any

import pytest

from deploy.local.doctor import accelerator_sentence
from deploy.local.refusal import SetupRefused
from trainer.child import child_environment
from trainer.domain.host import (
    HostFacts,
    Weight,
    first_visible_card,
    judge,
    leaves_out_xformers,
)


def facts(**changes: Any) -> HostFacts:
    """A node on which all goes together."""
    return HostFacts(
        **{
            "system": "Linux",
            "card": "NVIDIA A100-SXM4-80GB",
            "driver_cuda": "13.0",
            "torch_cuda": "12.8",
            "bitsandbytes": "0.50.2",
            "xformers": "0.0.35",
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "weight", "words"),
    [
        ({"torch_cuda": None}, Weight.BROKEN, "without CUDA"),
        ({"torch_cuda": "13.0", "driver_cuda": "12.4"}, Weight.BROKEN, "runs CUDA 12.4 at most"),
        ({"torch_cuda": "12.8", "driver_cuda": "12.4"}, Weight.NOTE, "newer than the driver's"),
        ({"system": "Windows", "bitsandbytes": "0.42.0"}, Weight.BROKEN, "bitsandbytes 0.42.0"),
        ({"card": "NVIDIA GeForce RTX 4090"}, Weight.NOTE, "xformers 0.0.35 is left out"),
        ({"card": "NVIDIA GeForce RTX 5070 Ti"}, Weight.NOTE, "xformers 0.0.35 is left out"),
    ],
)
def test_what_does_not_go_together_is_named_with_a_next_step(
    changes: dict[str, Any], weight: Weight, words: str
) -> None:
    """002-35"""
    (finding,) = judge(facts(**changes))
    assert finding.weight is weight
    assert words in finding.sentence
    assert finding.next_step


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"card": None, "driver_cuda": None, "torch_cuda": None, "xformers": None},
        {"system": "Windows", "bitsandbytes": "0.43.0"},
        {"bitsandbytes": "0.42.0"},
        {"torch_cuda": "12.8", "driver_cuda": "12.8"},
        {"card": "NVIDIA GeForce RTX 3090"},
        {"card": "NVIDIA RTX 4000 Ada Generation", "xformers": None},
        {"card": "NVIDIA GeForce RTX 4090", "xformers": None},
    ],
)
def test_what_goes_together_is_not_spoken_of(changes: dict[str, Any]) -> None:
    """002-35"""
    assert judge(facts(**changes)) == ()


def test_only_the_cards_in_question_go_without_xformers() -> None:
    """002-35"""
    assert leaves_out_xformers(facts(card="NVIDIA GeForce RTX 4060 Laptop GPU"))
    assert not leaves_out_xformers(facts(card="NVIDIA H100 80GB HBM3"))


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        (None, 0),
        ("3,1", 3),
        (" 2", 2),
        ("GPU-8932f937-d72c,1", "GPU-8932f937-d72c"),
        ("MIG-1a2b", "MIG-1a2b"),
        ("", None),
        ("-1", None),
        ("NoDevFiles", None),
    ],
)
def test_an_agent_looks_at_the_card_that_its_child_trains_on(
    listed: str | None, first: int | str | None
) -> None:
    """002-14: on a machine of eight cards the heat of another one says nothing."""
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert first_visible_card(environment) == first
    assert child_environment(environment)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_the_worst_comes_first() -> None:
    found = judge(facts(card="NVIDIA GeForce RTX 4090", torch_cuda="13.0", driver_cuda="12.4"))
    assert [finding.weight for finding in found] == [Weight.BROKEN, Weight.NOTE]


def test_the_doctor_says_what_there_is_to_train_on() -> None:
    """002-35"""
    assert accelerator_sentence({"card": None}, []) == "No NVIDIA GPU: the CPU tier."
    card = {"card": "NVIDIA T4", "driver_cuda": "12.8"}
    note = {"weight": "note", "sentence": "A note.", "next_step": ""}
    assert accelerator_sentence(card, [note]) == "NVIDIA T4 with CUDA 12.8. A note."
    with pytest.raises(SetupRefused) as caught:
        accelerator_sentence(card, [note, {**note, "weight": "broken", "next_step": "Mend it."}])
    assert caught.value.next_step == "Mend it."
