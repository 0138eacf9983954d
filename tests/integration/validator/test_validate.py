"""The validator over real calls: model hub, hub, billing, and a child process for strangers."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from tests.integration.validator.desk import ANVIL, CATALOG, PARENT, World, dataset, validator
from tests.support.modelhub_server import ModelHubServer, Repo
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2

pytestmark = pytest.mark.integration

HABIT = f"{PARENT}/datasets/habit"
ROWS = [
    {"instruction": f"What is {number}?", "output": f"Well, {number} is a number, my friend."}
    for number in range(40)
]


@pytest.fixture
def model_hub() -> Iterator[ModelHubServer]:
    with ModelHubServer(repos={"someone/llama": Repo.of_folder(ANVIL)}) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(datasets={HABIT: dataset(tmp_path, ROWS)})


@pytest.fixture
async def stub(world: World, model_hub: ModelHubServer, tmp_path: Path) -> AsyncIterator[Any]:
    async with validator(world, model_hub, tmp_path / "cache") as made:
        yield made


def a_spec(**changes: Any) -> spec_pb2.RunSpec:
    usual: dict[str, Any] = {
        "base_model": "tunesmith/anvil-3m",
        "datasets": [HABIT],
        "training": spec_pb2.TrainingConfig(max_steps=50),
        "lora": spec_pb2.LoraConfig(rank=8),
        "gpu_tier": "cpu",
        "attestations": spec_pb2.RightsAttestations(
            dataset_rights=True, model_license=True, refund_waived=True
        ),
    }
    return spec_pb2.RunSpec(**(usual | changes))


async def asked(stub: Any, spec: spec_pb2.RunSpec) -> Any:
    request = validation_service_pb2.ValidateRunRequest(parent=PARENT, spec=spec)
    return await stub.ValidateRun(request)


async def refusal(stub: Any, spec: spec_pb2.RunSpec) -> fault_pb2.Fault:
    response = await asked(stub, spec)
    assert response.verdict == fault_pb2.SEVERITY_RED
    assert not response.HasField("snapshot")
    (red,) = [each for each in response.findings if each.severity == fault_pb2.SEVERITY_RED]
    fault: fault_pb2.Fault = red.fault
    return fault


async def test_a_run_on_the_shipped_model_is_green(stub: Any) -> None:
    """003-01, 003-23, 003-27"""
    response = await asked(stub, a_spec())
    assert response.verdict == fault_pb2.SEVERITY_UNSPECIFIED, response.findings
    assert all(item.passed for item in response.checklist)
    assert response.snapshot.model_id == "tunesmith/anvil-3m"
    assert response.snapshot.dataset_versions == [f"{HABIT}/versions/1"]
    assert response.snapshot.estimated_steps == 50
    assert response.quote.refundable
    assert response.quote.maximum_minutes >= 1
    assert response.model.verified
    assert len(response.datasets) == 1
    learnt = [each for each in response.checklist if each.check == "there is something to learn"]
    assert "tokens of the first 40 rows are trained on" in learnt[0].detail


async def test_checks_take_seconds_not_minutes(stub: Any) -> None:
    """003-06"""
    seconds = []
    for _ in range(8):
        began = time.monotonic()
        await asked(stub, a_spec())
        seconds.append(time.monotonic() - began)
    assert max(seconds) < 10


async def test_a_model_of_the_model_hub_is_amber(stub: Any) -> None:
    """000-14, 003-03"""
    response = await asked(stub, a_spec(base_model="someone/llama"))
    assert response.verdict == fault_pb2.SEVERITY_AMBER
    assert [each.fault.code for each in response.findings] == ["MODEL_UNVERIFIED"]
    assert not response.quote.refundable
    assert len(response.snapshot.model_revision) == 40


async def test_a_model_without_template_goes_on_with_chatml(
    stub: Any, model_hub: ModelHubServer
) -> None:
    """000-25"""
    del model_hub.repos["someone/llama"].files["chat_template.jinja"]
    response = await asked(stub, a_spec(base_model="someone/llama"))
    assert "Chat template missing for model someone/llama; falling back to ChatML" in [
        each.fault.message for each in response.findings
    ]
    assert response.HasField("snapshot")


async def test_a_model_without_tokenizer_is_refused(stub: Any, model_hub: ModelHubServer) -> None:
    """000-24"""
    del model_hub.repos["someone/llama"].files["tokenizer.json"]
    fault = await refusal(stub, a_spec(base_model="someone/llama"))
    assert fault.message == "Tokenizer not found for model someone/llama"


async def test_an_unsupported_architecture_is_refused(stub: Any, model_hub: ModelHubServer) -> None:
    """000-21, 000-23"""
    files = model_hub.repos["someone/llama"].files
    config = json.loads(files["config.json"]) | {"architectures": ["SomeNewModel"]}
    files["config.json"] = json.dumps(config).encode()
    fault = await refusal(stub, a_spec(base_model="someone/llama"))
    assert fault.message == "Unsupported architecture: SomeNewModel"
    assert fault.category == fault_pb2.CATEGORY_UNSUPPORTED_ARCHITECTURE


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_model_that_cannot_be_had_is_refused(
    stub: Any, model_hub: ModelHubServer, status: int
) -> None:
    """002-07, 003-03"""
    model_hub.fail("someone/llama", status)
    fault = await refusal(stub, a_spec(base_model="someone/llama"))
    assert fault.code == "DEP_MODEL_LOAD_FAILED"
    assert fault.metadata["http_status"] == str(status)


@pytest.mark.parametrize("kind", ["gated", "private"])
async def test_a_gated_model_is_checked_as_the_user_who_asks(
    stub: Any, model_hub: ModelHubServer, kind: str
) -> None:
    """003-26, 002-07, 002-08: the user's token opens it, also when others have asked before."""
    repo = model_hub.repos["someone/llama"]
    repo.tokens = frozenset({"hf_of-ada"})
    setattr(repo, kind, True)
    request = validation_service_pb2.ValidateRunRequest(
        parent=PARENT, spec=a_spec(base_model="someone/llama")
    )
    for token, is_known in (("", False), ("hf_of-ada", True), ("hf_of-eve", False), ("", False)):
        request.hub_token = token
        response = await stub.ValidateRun(request)
        assert response.HasField("snapshot") is is_known
        assert "hf_of" not in str(response)
        if not is_known:
            fault = response.findings[0].fault
            assert fault.code == "DEP_MODEL_LOAD_FAILED"
            assert "accept the licence" in fault.remedy.lower()
            assert "`HF_TOKEN`" in fault.remedy
    preview = validation_service_pb2.PreviewTrainingRequest(
        parent=PARENT, spec=request.spec, hub_token="hf_of-ada"
    )
    assert (await stub.PreviewTraining(preview)).rows


@pytest.mark.parametrize("token", ["two words", "line\r\nX-Header: 1", "ä", "x" * 1025])
async def test_what_cannot_be_a_token_goes_nowhere(
    stub: Any, model_hub: ModelHubServer, token: str
) -> None:
    """003-26: it would become part of a header."""
    request = validation_service_pb2.ValidateRunRequest(
        parent=PARENT, spec=a_spec(base_model="someone/llama"), hub_token=token
    )
    with pytest.raises(Fault) as caught:
        await stub.ValidateRun(request)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
    assert token not in caught.value.message
    assert not model_hub.requests


async def test_a_template_that_attacks_is_refused_and_we_live(
    stub: Any, model_hub: ModelHubServer
) -> None:
    """Attack 4: it runs in a child, and its budget ends it."""
    files = model_hub.repos["someone/llama"].files
    for source in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    ):
        files["chat_template.jinja"] = source.encode()
        fault = await refusal(stub, a_spec(base_model="someone/llama"))
        assert fault.code == "MODEL_CHAT_TEMPLATE_INVALID"


async def test_a_tokenizer_that_is_none_is_refused_and_we_live(
    stub: Any, model_hub: ModelHubServer
) -> None:
    model_hub.repos["someone/llama"].files["tokenizer.json"] = b'{"model": null}'
    fault = await refusal(stub, a_spec(base_model="someone/llama"))
    assert fault.code == "MODEL_CHAT_TEMPLATE_INVALID"
    response = await asked(stub, a_spec())
    assert response.HasField("snapshot")


async def test_a_dataset_that_is_not_there_is_refused(stub: Any) -> None:
    """003-02"""
    fault = await refusal(stub, a_spec(datasets=[f"{PARENT}/datasets/habbit"]))
    assert fault.code == "DATASET_NOT_FOUND"


async def test_a_deleted_dataset_is_named(stub: Any, world: World) -> None:
    """000-33"""
    world.deleted.add(HABIT)
    fault = await refusal(stub, a_spec())
    assert fault.code == "DATASET_DELETED"
    assert "habit" in fault.message


async def test_a_dataset_of_another_project_is_not_there(stub: Any, world: World) -> None:
    world.datasets["projects/other/datasets/secret"] = world.datasets[HABIT]
    fault = await refusal(stub, a_spec(datasets=["projects/other/datasets/secret"]))
    assert fault.code == "DATASET_NOT_FOUND"


async def test_two_files_of_different_shape_make_one_run(
    stub: Any, world: World, tmp_path: Path
) -> None:
    """000-20, A10"""
    other = f"{PARENT}/datasets/other"
    world.datasets[other] = dataset(tmp_path, [{"text": "Once upon a time."}] * 5, name="other")
    response = await asked(stub, a_spec(datasets=[HABIT, other]))
    assert response.HasField("snapshot")
    assert len(response.snapshot.dataset_versions) == 2


async def test_answers_beyond_the_longest_sequence_are_not_learnt(
    stub: Any, world: World, tmp_path: Path
) -> None:
    """The prompt alone fills the sequence, so that no token of any answer is trained on."""
    rows = [{"instruction": "word " * 400, "output": "Answer."}] * 4
    world.datasets[HABIT] = dataset(tmp_path, rows, name="long")
    training = spec_pb2.TrainingConfig(max_steps=5, max_sequence_tokens=64)
    fault = await refusal(stub, a_spec(training=training))
    assert fault.code == "DATASET_NO_TRAINED_TOKENS"


async def test_the_quota_is_asked_of_the_hub(stub: Any, world: World) -> None:
    """000-34"""
    world.artifact_bytes = world.artifact_quota_bytes - 1000
    assert (await refusal(stub, a_spec())).code == "QUOTA_ARTIFACTS_EXCEEDED"


async def test_the_plan_is_asked_of_billing(stub: Any, world: World) -> None:
    """000-32"""
    world.plan = "free"
    fault = await refusal(stub, a_spec(gpu_tier="a100"))
    assert fault.code == "CONFIG_TIER_NOT_IN_PLAN"


async def test_a_preview_shows_what_is_trained_on(stub: Any) -> None:
    request = validation_service_pb2.PreviewTrainingRequest(
        parent=PARENT, spec=a_spec(), row_count=2
    )
    response = await stub.PreviewTraining(request)
    assert [row.row_number for row in response.rows] == [1, 2]
    for row, source in zip(response.rows, ROWS, strict=False):
        (span,) = row.trained_spans
        assert row.rendered_text[span.start : span.end] == f"{source['output']}<|im_end|>"
        assert 0 < row.trained_token_count < row.token_count
        assert not row.truncated


async def test_a_preview_of_too_many_rows_is_refused(stub: Any) -> None:
    request = validation_service_pb2.PreviewTrainingRequest(
        parent=PARENT, spec=a_spec(), row_count=21
    )
    with pytest.raises(Fault) as caught:
        await stub.PreviewTraining(request)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


async def test_another_project_is_closed(stub: Any) -> None:
    request = validation_service_pb2.ValidateRunRequest(parent="projects/other", spec=a_spec())
    with pytest.raises(Fault) as caught:
        await stub.ValidateRun(request)
    assert caught.value.code is FaultCode.ACCESS_PROJECT_FORBIDDEN


async def test_tiers_come_in_pages(stub: Any) -> None:
    found: list[str] = []
    token = ""
    while True:
        response = await stub.ListTiers(
            validation_service_pb2.ListTiersRequest(page_size=4, page_token=token)
        )
        found += [tier.tier for tier in response.tiers]
        token = response.next_page_token
        if not token:
            break
    assert found == list(CATALOG.tiers)
