"""An export that fails its proof: nothing of it is published, the adapter stays, the money returns.

The damage is real: rows of the converted base, as the export node keeps it, are in another order.
The node has a cache of its own for this, since other stacks of the machine share theirs.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.places import cache_folder
from exporter.engine.weights import GgufFile
from tests.demo import lesson
from tests.demo.stack import Stack
from tests.e2e.conftest import Taught
from tests.support.whole_stack import BASE, settled
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def damaged(taught: Taught, tmp_path: Path) -> Iterator[Client]:
    """A stack whose export node has a damaged base; the earlier run saw to it that there is one."""
    assert taught.run.state == run_pb2.RUN_STATE_COMPLETED
    caches = tmp_path / "caches"
    (caches / "tunesmith").mkdir(parents=True)
    for path in cache_folder().iterdir():
        if path.name != "models":
            (caches / "tunesmith" / path.name).symlink_to(path)
    models = caches / "tunesmith" / "models"
    shutil.copytree(cache_folder() / "models", models)
    bases = list(models.glob("gguf/*/base.gguf"))
    assert bases
    for base in bases:
        disorder(base)
    stack = Stack(state=tmp_path / "stack", environ={"XDG_CACHE_HOME": str(caches)})
    stack.up()
    try:
        with Client(stack.credentials) as client:
            yield client
    finally:
        stack.down()


def disorder(path: Path) -> None:
    """Turns the rows of some matrices upside down."""
    with GgufFile(path) as file:
        start = file.header.data_start
        turned = {
            start + info.offset: file.raw(info, first_row=0, row_count=info.row_count)[
                ::-1
            ].tobytes()
            for info in file.header.tensors
            if "ffn_down" in info.name or "attn_output" in info.name
        }
    with path.open("r+b") as out:
        for place, rows in turned.items():
            out.seek(place)
            out.write(rows)


def test_a_failed_proof_keeps_the_adapter_and_refunds_the_verified_run(damaged: Client) -> None:
    """A5, 001-40: category EXPORT, an entry with the adapter alone, the whole charge back."""
    story = lesson.read_lesson()
    damaged.datasets.push(story.dataset, dataset_id=lesson.DATASET_ID)
    before = damaged.billing.account().available.amount_micros
    spec = lesson.spec_for(story, base=BASE)
    spec.training.max_steps = 20_000
    submitted = damaged.runs.submit(spec)
    is_stopping = False
    for event in damaged.runs.watch(submitted.name):
        billable = event.progressed.clocks.billable.ToTimedelta().total_seconds()
        if billable > 61 and not is_stopping:
            is_stopping = bool(damaged.runs.stop(submitted.name).name)
    run = damaged.runs.get(submitted.name)
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert run.fault.code == "EXPORT_WRONG_BASE"
    assert run.fault.stage == fault_pb2.STAGE_EXPORTING
    (entry,) = damaged.artifacts.list(run=run.name)
    assert [file.kind for file in entry.files] == [artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER]
    receipt = settled(damaged, run.name)
    assert receipt.billable_minutes >= 1
    assert receipt.refunded == receipt.charged
    assert receipt.charged.amount_micros > 0
    assert damaged.billing.account().available.amount_micros == before
    assert damaged.billing.verify(run.name).consistent
