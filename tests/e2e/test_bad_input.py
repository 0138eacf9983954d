"""What is refused, with which code and next step, and that nothing comes of it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from chassis import identity
from deploy.local.layout import open_layout
from tests.demo import lesson
from tests.demo.stack import Stack
from tests.support.whole_stack import BASE
from tunesmith.api.billing.v1 import billing_service_pb2, billing_service_pb2_grpc
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.client import Client
from tunesmith.errors import TunesmithError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
OTHER_ROW = '{"instruction": "a", "output": "b"}\n'


def a_spec(habit: str) -> spec_pb2.RunSpec:
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.datasets[:] = [habit]
    return spec


def what_exists(client: Client) -> tuple[object, ...]:
    account = client.billing.account()
    return (
        [run.name for run in client.runs.list()],
        [(dataset.name, dataset.version_count) for dataset in client.datasets.list()],
        [artifact.name for artifact in client.artifacts.list()],
        [entry.name for entry in client.billing.transactions()],
        account.available.amount_micros,
        account.held.amount_micros,
    )


def _unknown_dataset(spec: spec_pb2.RunSpec) -> None:
    spec.datasets[:] = ["habitt"]


def _no_dataset(spec: spec_pb2.RunSpec) -> None:
    del spec.datasets[:]


def _rank_zero(spec: spec_pb2.RunSpec) -> None:
    spec.lora.rank = 0


def _unknown_tier(spec: spec_pb2.RunSpec) -> None:
    spec.gpu_tier = "t800"


def _no_attestation(spec: spec_pb2.RunSpec) -> None:
    spec.attestations.dataset_rights = False


def _no_training(spec: spec_pb2.RunSpec) -> None:
    spec.ClearField("training")


def _unknown_model(spec: spec_pb2.RunSpec) -> None:
    spec.base_model = "anvil"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_unknown_dataset, "DATASET_NOT_FOUND"),
        (_no_dataset, "CONFIG_LEG_MISSING"),
        (_no_training, "CONFIG_LEG_MISSING"),
        (_rank_zero, "CONFIG_RANK_OUT_OF_RANGE"),
        (_unknown_tier, "CONFIG_TIER_UNKNOWN"),
        (_no_attestation, "CONFIG_ATTESTATION_MISSING"),
        (_unknown_model, "MODEL_NOT_FOUND"),
    ],
)
def test_a_bad_spec_is_refused_and_nothing_is_created(
    client: Client, habit: str, spoil: Callable[[spec_pb2.RunSpec], None], code: str
) -> None:
    """000-30, 000-31, 003-02, 003-03"""
    spec = a_spec(habit)
    spoil(spec)
    before = what_exists(client)
    with pytest.raises(TunesmithError) as refused:
        client.runs.submit(spec)
    assert refused.value.code == code
    assert refused.value.message.startswith("Invalid config: ")
    assert refused.value.remedy
    assert what_exists(client) == before


def test_an_unknown_dataset_is_answered_with_the_nearest_name(client: Client, habit: str) -> None:
    """003-02"""
    spec = a_spec(habit)
    _unknown_dataset(spec)
    with pytest.raises(TunesmithError) as refused:
        client.runs.submit(spec)
    assert "habit" in f"{refused.value.message} {refused.value.remedy}".replace("habitt", "")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "DATASET_EMPTY"),
        ("\n\n", "DATASET_EMPTY"),
        (ROW * 3 + OTHER_ROW, "DATASET_FORMAT_MIXED"),
        ('{"unknown": 1}\n', "DATASET_NO_VALID_ROWS"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "c"}\n', "DATASET_FIELD_MISSING"),
    ],
)
def test_a_bad_file_makes_no_dataset(
    client: Client, tmp_path: Path, content: str, code: str
) -> None:
    """000-16, 000-17, 000-20"""
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    before = what_exists(client)
    with pytest.raises(TunesmithError) as refused:
        client.datasets.push(path)
    assert refused.value.code == code
    assert refused.value.remedy
    if code == "DATASET_FIELD_MISSING":
        assert refused.value.message == "Dataset row 2 missing required field 'output'"
    if code == "DATASET_FORMAT_MIXED":
        assert "split" in refused.value.remedy.lower()
    assert what_exists(client) == before


@pytest.fixture
def poor(stack: Stack, client: Client) -> Iterator[Client]:
    """A client of a project that has a plan and no credit."""
    key = open_layout(stack.state).secrets["signing_key"]
    token = identity.mint(
        key, subject="user-poor", role=identity.Role.PROJECT, project="poor", now=datetime.now(UTC)
    )
    mine = client.credentials
    with grpc.insecure_channel(mine.target) as channel:
        billing_service_pb2_grpc.BillingServiceStub(channel).SetPlan(
            billing_service_pb2.SetPlanRequest(
                request_id="poor-plan", parent="projects/poor", plan="local"
            ),
            metadata=(("authorization", f"Bearer {mine.operator_token}"),),
            timeout=10,
        )
    with Client(mine, token=token, project="poor") as made:
        yield made


def test_without_credit_there_is_no_run(poor: Client) -> None:
    """003-27"""
    poor.datasets.push(lesson.read_lesson().dataset, dataset_id="habit")
    before = what_exists(poor)
    with pytest.raises(TunesmithError) as refused:
        poor.runs.submit(a_spec("habit"))
    assert refused.value.code == "BILLING_FUNDS_INSUFFICIENT"
    assert refused.value.remedy
    assert what_exists(poor) == before


def test_another_projects_things_are_out_of_reach(client: Client, poor: Client, habit: str) -> None:
    for attempt in (
        lambda: poor.datasets.inspect(f"projects/local/datasets/{habit}"),
        lambda: poor.runs.get("projects/local/runs/any"),
        lambda: poor.runs.cancel("projects/local/runs/any"),
        lambda: poor.billing.receipt("projects/local/runs/any"),
    ):
        with pytest.raises(TunesmithError) as refused:
            attempt()
        assert refused.value.code == "ACCESS_PROJECT_FORBIDDEN"
    before = what_exists(client), what_exists(poor)
    with pytest.raises(TunesmithError) as refused:
        poor.runs.submit(a_spec(f"projects/local/datasets/{habit}"))
    # Whether another project has such a dataset is nobody's business.
    assert refused.value.code in {"ACCESS_PROJECT_FORBIDDEN", "DATASET_NOT_FOUND"}
    assert (what_exists(client), what_exists(poor)) == before
