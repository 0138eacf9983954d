"""Runs that only some nodes of a tier can do: refused when none can, leased to no other."""

from typing import Any

import pytest

from chassis.identity import Role
from lexicon.faults import Fault, FaultCode
from tests.support.scheduler_calls import NODE, a_spec, leased, registered, submitted
from tests.support.scheduling import Neighbours, SchedulerProcess, calling
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2

pytestmark = pytest.mark.integration

TRAIN = work_pb2.TASK_KIND_TRAIN
ABLE = "nodes/trainer-able"


def an_mlx_spec(tier: str = "cpu") -> spec_pb2.RunSpec:
    spec = a_spec()
    spec.training.backend = spec_pb2.BACKEND_MLX
    spec.gpu_tier = tier
    return spec


async def test_mlx_without_an_able_node_of_the_tier_is_refused_at_submit(
    scheduler: SchedulerProcess, fakes: Neighbours
) -> None:
    """002-37, A17: by capability; a node of another tier, or one that cannot, does not count."""
    async with (
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
        calling(scheduler.address, Role.NODE, subject=ABLE) as other,
        calling(scheduler.address) as user,
    ):
        await registered(node, NODE, TRAIN, capabilities=["peft", "bf16"])
        await registered(other, ABLE, TRAIN, tier="apple", capabilities=["mlx"])
        for validate_only in (False, True):
            with pytest.raises(Fault) as caught:
                await submitted(user, spec=an_mlx_spec(), validate_only=validate_only)
            assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING
            assert caught.value.message == (
                "Invalid config: No node of tier cpu can do this: mlx. Use the backend auto."
            )
        assert not fakes.billing.held
        await submitted(user, spec=an_mlx_spec("apple"))


async def test_mlx_is_leased_to_a_node_that_can_do_it_and_keeps_nobody_waiting(
    scheduler: SchedulerProcess,
) -> None:
    """A17: the first run of the queue goes past a node without MLX, which gets the second one."""
    async with (
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
        calling(scheduler.address, Role.NODE, subject=ABLE) as able,
        calling(scheduler.address) as user,
    ):
        await registered(node, NODE, TRAIN, capabilities=["peft"])
        await registered(able, ABLE, TRAIN, capabilities=["mlx", "peft"])
        special = await submitted(user, spec=an_mlx_spec())
        plain = await submitted(user)
        assert (await leased(node)).run == plain.name
        assert (await leased(able, ABLE)).run == special.name


@pytest.mark.parametrize(
    ("training", "need", "way_out"),
    [
        ({"load_in_4bit": True}, "nf4", "Leave load_in_4bit out."),
        ({"optimizer": spec_pb2.OPTIMIZER_ADAMW_8BIT}, "adamw-8bit", "adamw_torch"),
    ],
)
async def test_what_needs_bitsandbytes_goes_to_a_node_that_has_it_or_is_refused(
    scheduler: SchedulerProcess, training: dict[str, Any], need: str, way_out: str
) -> None:
    """A run over nf4 never reaches a node that would have to fail it."""
    spec = a_spec()
    spec.training.MergeFrom(spec_pb2.TrainingConfig(**training))
    async with (
        calling(scheduler.address, Role.NODE, subject=NODE) as node,
        calling(scheduler.address, Role.NODE, subject=ABLE) as able,
        calling(scheduler.address) as user,
    ):
        await registered(node, NODE, TRAIN, capabilities=["peft"])
        with pytest.raises(Fault) as caught:
            await submitted(user, spec=spec)
        assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING
        assert need in caught.value.message
        assert way_out in caught.value.message
        await registered(able, ABLE, TRAIN, capabilities=["adamw-8bit", "nf4", "peft"])
        special = await submitted(user, spec=spec)
        plain = await submitted(user)
        assert (await leased(node)).run == plain.name
        assert (await leased(able, ABLE)).run == special.name
