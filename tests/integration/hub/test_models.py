"""Base models by RPC: the catalog with its shipped weights, added models and their waiver."""

import hashlib

import pytest

from lexicon.faults import FaultCode
from tests.integration.hub.conftest import CATALOG, Hub
from tests.integration.hub.test_datasets import refusal
from tunesmith.api.model.v1 import model_pb2, model_service_pb2

pytestmark = pytest.mark.integration

ANVIL = "tunesmith/anvil-3m"
WEIGHTS = CATALOG.parent / "models" / "anvil" / "weights"


async def resolved(hub: Hub, text: str) -> model_service_pb2.ResolveModelResponse:
    request = model_service_pb2.ResolveModelRequest(parent="projects/acme", base_model=text)
    response: model_service_pb2.ResolveModelResponse = await hub.models.ResolveModel(request)
    return response


def addition(
    text: str, *, waived: bool = True, request_id: str = "a1"
) -> model_service_pb2.AddModelRequest:
    return model_service_pb2.AddModelRequest(
        request_id=request_id,
        parent="projects/acme",
        base_model=text,
        consent=model_pb2.ModelConsent(refund_waived=waived),
    )


async def test_weights_that_ship_with_the_platform_are_served_from_the_store(hub: Hub) -> None:
    model = (await resolved(hub, ANVIL)).model
    assert model.verified
    assert model.name == "models/tunesmith-anvil-3m"
    files = {file.path: file for file in model.files}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    weights = files["model.safetensors"]
    assert weights.sha256 == hashlib.sha256((WEIGHTS / weights.path).read_bytes()).hexdigest()
    key = weights.uri.removeprefix("object://")
    size = sum([len(piece) async for piece in await hub.objects.get(key)])
    assert size == weights.size_bytes


@pytest.mark.parametrize("text", [ANVIL, ANVIL.upper(), f"  {ANVIL} "])
async def test_catalog_ids_are_found_however_they_are_written(hub: Hub, text: str) -> None:
    assert (await resolved(hub, text)).model.model_id == ANVIL


@pytest.mark.parametrize(
    ("text", "model_id", "revision"),
    [
        ("some-org/Some_Model.v2", "some-org/Some_Model.v2", "main"),
        ("https://huggingface.co/some-org/model", "some-org/model", "main"),
        ("https://huggingface.co/some-org/model/tree/v1.0", "some-org/model", "v1.0"),
    ],
)
async def test_hub_ids_and_urls_are_understood_and_not_vouched_for(
    hub: Hub, text: str, model_id: str, revision: str
) -> None:
    model = (await resolved(hub, text)).model
    assert (model.model_id, model.revision) == (model_id, revision)
    assert not model.verified
    assert model.name == ""
    assert not model.HasField("consent")


async def test_a_misspelt_catalog_id_is_answered_with_the_nearest(hub: Hub) -> None:
    response = await resolved(hub, "tunesmith/anvil-3n")
    assert ANVIL in response.similar_ids
    fault = await refusal(resolved(hub, "anvil 3m"))
    assert fault.code is FaultCode.MODEL_NOT_FOUND
    assert ANVIL in fault.metadata["similar_names"]


async def test_a_model_is_added_only_with_the_waiver_which_is_kept_with_time_and_user(
    hub: Hub,
) -> None:
    """000-05."""
    refused = await refusal(hub.models.AddModel(addition("some-org/model", waived=False)))
    assert refused.code is FaultCode.MODEL_CONSENT_MISSING
    added = (await hub.models.AddModel(addition("some-org/model"))).model
    assert added.consent.user == "ada"
    assert added.consent.HasField("consent_time")
    again = (await hub.models.AddModel(addition("some-org/model"))).model
    assert again == added
    found = (await resolved(hub, "https://huggingface.co/some-org/model")).model
    assert found.name == added.name
    assert found.consent.refund_waived
    assert not found.verified


async def test_an_added_model_is_listed_behind_the_catalog_and_can_be_taken_out(hub: Hub) -> None:
    added = (await hub.models.AddModel(addition("some-org/model"))).model
    request = model_service_pb2.ListModelsRequest(parent="projects/acme", page_size=1000)
    models = (await hub.models.ListModels(request)).models
    assert models[-1].name == added.name
    assert ANVIL in {model.model_id for model in models}
    delete = model_service_pb2.DeleteModelRequest(request_id="d1", name=added.name)
    await hub.models.DeleteModel(delete)
    await hub.models.DeleteModel(delete)
    assert (await resolved(hub, "some-org/model")).model.name == ""
    get = model_service_pb2.GetModelRequest(name=added.name)
    assert (await refusal(hub.models.GetModel(get))).code is FaultCode.MODEL_NOT_FOUND


async def test_the_catalog_cannot_be_deleted_by_users(hub: Hub) -> None:
    request = model_service_pb2.DeleteModelRequest(
        request_id="d1", name="models/tunesmith-anvil-3m"
    )
    assert (await refusal(hub.models.DeleteModel(request))).code is FaultCode.ACCESS_DENIED


async def test_models_are_listed_in_pages_without_gap_or_repetition(hub: Hub) -> None:
    names: list[str] = []
    token = ""
    while True:
        request = model_service_pb2.ListModelsRequest(
            parent="projects/acme", page_size=4, page_token=token
        )
        page = await hub.models.ListModels(request)
        names += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert len(names) == len(set(names)) > 4
