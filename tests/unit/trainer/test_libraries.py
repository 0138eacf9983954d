"""Which device and rail a run gets, how a base comes into memory, and how it is told when not."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from deploy.models.anvil.grammar import HOME
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend
from tests.support.training import FP32, a_plan
from trainer.domain.device import (
    CAUSE_CHARACTERS_MAX,
    Device,
    UnslothPolicy,
    device_of,
    fallback_text,
    short_cause,
    tries_unsloth,
)
from trainer.pipe import Terms
from trainer.training import peft_library
from trainer.training.libraries import TorchLibraries, TorchLibrary, find_libraries, loading
from trainer.training.peft_library import load_base

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NO_GPU = FaultCode.DEP_GPU_NOT_AVAILABLE
# The rail is only ever handed on here; which module it is does not matter.
UNSLOTH = cast(TorchLibrary, object())


def outcome(backend: Backend, *, has_cuda: bool, tier: str) -> Device | FaultCode:
    try:
        return device_of(backend, has_cuda=has_cuda, tier=tier)
    except Fault as fault:
        return fault.code


@pytest.mark.parametrize(
    ("backend", "with_cuda", "cpu_tier_without", "gpu_tier_without"),
    [
        (Backend.AUTO, Device.CUDA, Device.CPU, NO_GPU),
        (Backend.CUDA, Device.CUDA, NO_GPU, NO_GPU),
        (Backend.CPU, Device.CPU, Device.CPU, Device.CPU),
        (Backend.MLX, Device.MLX, Device.MLX, Device.MLX),
    ],
)
def test_a_backend_resolves_by_the_table(
    backend: Backend,
    with_cuda: Device | FaultCode,
    cpu_tier_without: Device | FaultCode,
    gpu_tier_without: Device | FaultCode,
) -> None:
    """002-39, 002-41: CUDA where it is; the processor only on its tier or when chosen."""
    assert outcome(backend, has_cuda=True, tier="a100") == with_cuda
    assert outcome(backend, has_cuda=True, tier="cpu") == with_cuda
    assert outcome(backend, has_cuda=False, tier="cpu") == cpu_tier_without
    assert outcome(backend, has_cuda=False, tier="a100") == gpu_tier_without


@pytest.mark.parametrize("tier", ["cpu", "apple"])
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        (Backend.AUTO, Device.MLX),
        (Backend.MLX, Device.MLX),
        (Backend.CPU, Device.CPU),
        (Backend.CUDA, NO_GPU),
    ],
)
def test_auto_means_mlx_on_apple_hosts_alone(
    backend: Backend, device: Device | FaultCode, tier: str
) -> None:
    """002-39, 002-41"""
    try:
        found: Device | FaultCode = on_apple(tier).resolve(a_plan(backend=backend))
    except Fault as fault:
        found = fault.code
    assert found == device


def test_auto_leaves_what_mlx_does_not_do_to_the_processor() -> None:
    """002-38: on an Apple host, too, DoRA trains by PEFT, where the tier sells the processor."""
    assert on_apple("cpu").resolve(a_plan(backend=Backend.AUTO, adapter_use_dora=True)) == "cpu"


def on_apple(tier: str) -> TorchLibraries:
    return find_libraries(
        Terms(tier=tier),
        has_cuda=False,
        is_apple=True,
        import_unsloth=lambda: UNSLOTH,
        import_peft=lambda: peft_library,
        restart=lambda _: None,
    )


@pytest.mark.parametrize(
    ("policy", "has_cuda", "tries"),
    [
        (UnslothPolicy.AUTO, True, True),
        (UnslothPolicy.AUTO, False, False),
        (UnslothPolicy.ALWAYS, False, True),
        (UnslothPolicy.NEVER, True, False),
    ],
)
def test_unsloth_is_tried_where_there_is_cuda_or_the_operator_says_so(
    policy: UnslothPolicy, has_cuda: bool, tries: bool
) -> None:
    assert tries_unsloth(policy, has_cuda=has_cuda) is tries


def some_libraries(failure: Exception | None, *, terms: Terms | None = None) -> TorchLibraries:
    """The rails of a node with CUDA, on which the import of Unsloth ends like this."""

    def unsloth() -> TorchLibrary:
        if failure is not None:
            raise failure
        return UNSLOTH

    return find_libraries(
        terms or Terms(tier="a100"),
        has_cuda=True,
        import_unsloth=unsloth,
        import_peft=lambda: peft_library,
        restart=lambda _: None,
    )


def chosen(
    libraries: TorchLibraries, device: torch.device, **plan: Any
) -> tuple[TorchLibrary, list[str]]:
    told: list[str] = []
    library = libraries.choose(
        a_plan(**plan).compute, device, warn=lambda code, text: told.append(text)
    )
    return library, told


def test_unsloth_drives_cuda_and_never_an_unasked_processor() -> None:
    libraries = some_libraries(None)
    assert chosen(libraries, CUDA) == (UNSLOTH, [])
    assert chosen(libraries, CPU) == (peft_library, [])


def test_unsloth_comes_before_the_libraries_that_it_changes() -> None:
    order: list[str] = []

    def bring(name: str, library: TorchLibrary) -> TorchLibrary:
        order.append(name)
        return library

    find_libraries(
        Terms(),
        has_cuda=True,
        import_unsloth=lambda: bring("unsloth", UNSLOTH),
        import_peft=lambda: bring("peft", peft_library),
        restart=lambda _: None,
    )
    assert order == ["unsloth", "peft"]


def test_an_import_that_fails_halfway_leaves_its_process_to_another() -> None:
    """002-24: what it has changed by then must not reach the fallback."""
    anew: list[Terms] = []

    def broken() -> TorchLibrary:
        raise ImportError("cut_cross_entropy")

    find_libraries(
        Terms(tier="a100"),
        has_cuda=True,
        import_unsloth=broken,
        import_peft=lambda: peft_library,
        restart=anew.append,
    )
    assert anew == [Terms(tier="a100", unsloth_failure="ImportError: cut_cross_entropy")]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ModuleNotFoundError("No module named 'unsloth'"), "No module named 'unsloth'"),
        (NotImplementedError("Unsloth cannot find any torch accelerator"), "accelerator"),
        (OSError("libcudart.so.13: cannot open shared object file"), "libcudart.so.13"),
    ],
)
def test_a_failed_import_falls_back_with_the_words_that_users_know(
    error: Exception, cause: str
) -> None:
    """002-24"""
    library, told = chosen(some_libraries(error), CUDA)
    assert library is peft_library
    assert told == [
        (
            f"Unsloth load failed ({type(error).__name__}: {error}); falling back to "
            "transformers + PEFT. Set Trainer(unsloth_fallback=False) to disable."
        )
    ]
    assert cause in told[0]


def test_without_the_fallback_a_failed_import_ends_the_run() -> None:
    """002-25"""
    with pytest.raises(Fault) as caught:
        chosen(some_libraries(ImportError("broken")), CUDA, unsloth_fallback=False)
    assert caught.value.code is FaultCode.RUNTIME_UNSLOTH_FAILED


def test_a_node_that_does_not_want_unsloth_says_nothing_of_it() -> None:
    terms = Terms(tier="a100", unsloth=UnslothPolicy.NEVER)
    assert chosen(some_libraries(ImportError("broken"), terms=terms), CUDA) == (peft_library, [])


def test_a_child_that_takes_over_leaves_unsloth_out_and_knows_why() -> None:
    """002-24: a load that failed has changed the libraries, so another process trains."""
    terms = Terms(tier="a100", unsloth_failure="RuntimeError: no kernel image")
    libraries = some_libraries(None, terms=terms)
    assert libraries.unsloth is None
    assert chosen(libraries, CUDA)[1] == [fallback_text("RuntimeError: no kernel image")]


def test_what_goes_wrong_while_unsloth_loads_is_its_fault_and_no_other_rails() -> None:
    libraries = some_libraries(None)
    with pytest.raises(Fault) as caught, loading(UNSLOTH, libraries):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")
    assert caught.value.code is FaultCode.RUNTIME_UNSLOTH_FAILED
    assert caught.value.metadata["cause"].endswith("no kernel image is available")
    with pytest.raises(RuntimeError), loading(libraries.peft, libraries):
        raise RuntimeError("ours")


def test_a_cause_is_short() -> None:
    assert short_cause(ValueError()) == "ValueError"
    assert len(short_cause(ValueError("x" * 1000))) == CAUSE_CHARACTERS_MAX


def test_cut_weights_are_found_before_training_and_no_folder_is_named(tmp_path: Path) -> None:
    """004-10, 000-35: a truncated safetensors file; no path of the node is told."""
    folder = tmp_path / "base"
    shutil.copytree(HOME / "weights", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    base = replace(a_plan().base, folder=str(folder))
    with pytest.raises(Fault) as caught:
        load_base(base, FP32)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert base.model_id in caught.value.message
    assert str(tmp_path) not in caught.value.message
