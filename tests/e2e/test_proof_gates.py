"""Exports that fail their proof: nothing is published, the adapter stays, the money returns.

Every damage is real: a recipe that teaches nothing, a processor that computes wrongly, weights and
a tokenizer that rotted on the trainer's disk. One stack with caches of its own serves all of them.
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.demo import bundles, lesson
from tests.demo.stack import Stack
from tests.e2e.conftest import Taught
from tests.support import own_caches, rotten_kernel, subscriber
from tests.support.whole_stack import BASE, kill, settled, wait_until_back
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.cli import session
from tunesmith.cli.main import app
from tunesmith.client import Client
from tunesmith.errors import TunesmithError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
LORA = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
# Every adapter's product is then far below the last bit of the weights that it is added to.
NOTHING_LEARNT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A stack whose nodes' caches are its own; `ill` lets its exporter's processor err."""

    stack: Stack
    client: Client
    models: Path
    ill: Path

    def restart(self, name: str) -> None:
        """A new process, which has nothing of the disk in its memory."""
        wait_until_back(self.stack, name, killed=kill(self.stack, name))


@pytest.fixture(scope="module")
def damaged(taught: Taught, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Damaged]:
    """The earlier run saw to it that base, conversion and kernel are in the caches."""
    assert taught.run.state == run_pb2.RUN_STATE_COMPLETED
    folder = tmp_path_factory.mktemp("damaged")
    models = own_caches.make_caches(folder / "caches")
    ill = folder / "ill"
    assert rotten_kernel.replace_kernels(models / "gguf" / "kernels", ill=ill)
    stack = Stack(state=folder / "stack", environ={"XDG_CACHE_HOME": str(folder / "caches")})
    stack.up()
    try:
        with Client(stack.credentials) as client:
            client.datasets.push(lesson.read_lesson().dataset, dataset_id=lesson.DATASET_ID)
            yield Damaged(stack=stack, client=client, models=models, ill=ill)
    finally:
        stack.down()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A run that was trained for a paid minute and failed its proof."""

    run: run_pb2.Run
    heard: list[event_pb2.Event]


def refused(
    damaged: Damaged,
    change: Callable[[spec_pb2.RunSpec], None],
    before_end: Callable[[], None] = lambda: None,
) -> Refused:
    """Trains for a minute, stops, and follows the run to its end on NATS."""
    client = damaged.client
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    spec.training.max_steps = 20_000
    change(spec)
    is_stopping = False
    with subscriber.listening(client.credentials.nats_url, project="local") as heard:
        submitted = client.runs.submit(spec)
        told = 0
        for event in client.runs.watch(submitted.name):
            told += 1
            billable = event.progressed.clocks.billable.ToTimedelta().total_seconds()
            if billable > 61 and not is_stopping:
                before_end()
                is_stopping = bool(client.runs.stop(submitted.name).name)
        heard.wait_for(submitted.name, count=told)
    return Refused(run=client.runs.get(submitted.name), heard=heard.of(submitted.name))


def require_everything_kept_and_refunded(
    damaged: Damaged, found: Refused, code: str, folder: Path
) -> None:
    """A5, 001-40: the run's end, its event, its bill, its adapter, and what its user is told."""
    client, run = damaged.client, found.run
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert (run.fault.code, run.fault.stage) == (code, fault_pb2.STAGE_EXPORTING)
    ended = found.heard[-1]
    assert ended.WhichOneof("payload") == "ended"
    assert (ended.state, ended.ended.fault.code) == (run_pb2.RUN_STATE_FAILED, code)
    assert ended.ended.fault.category == fault_pb2.CATEGORY_EXPORT
    (entry,) = client.artifacts.list(run=run.name)
    assert [file.kind for file in entry.files] == [LORA]
    (archive,) = client.artifacts.pull(run.name, folder, kinds=[LORA])
    assert set(zipfile.ZipFile(archive).namelist()) == bundles.ADAPTER_FILES
    receipt = settled(client, run.name)
    assert receipt.billable_minutes >= 1
    assert receipt.refunded == receipt.charged
    assert receipt.charged.amount_micros > 0
    assert client.billing.verify(run.name).consistent
    shown = typed(damaged, "run", "show", run.name)
    assert code in shown
    assert run.fault.remedy.split()[0] in shown


def typed(damaged: Damaged, *words: str) -> str:
    """What a user reads who types a command."""
    session._SETTINGS.as_json = False
    done = CliRunner().invoke(app, ["--credentials", str(damaged.stack.credentials), *words])
    return done.output


def exported_again(damaged: Damaged, run: run_pb2.Run) -> str:
    """The code with which an export of the stored adapter ends, "" for a bundle."""
    try:
        done = damaged.client.exports.wait(damaged.client.exports.create(run.name, "Q4_K_M").name)
    except TunesmithError as error:
        return error.code
    assert done.state == export_pb2.EXPORT_STATE_COMPLETED
    assert done.proof.proven
    return ""


@contextmanager
def rotten(damaged: Damaged, rot: Callable[[Path], None]) -> Iterator[None]:
    """The trainer's files of the base are rotten meanwhile, and no process has better ones."""
    sound = damaged.models.with_name("sound-store")
    shutil.copytree(damaged.models / "store", sound)
    rot(damaged.models)
    damaged.restart("trainer")
    try:
        yield
    finally:
        shutil.rmtree(damaged.models / "store")
        sound.rename(damaged.models / "store")
        damaged.restart("trainer")


def test_a_merge_without_effect(damaged: Damaged, tmp_path: Path) -> None:
    """A5, 001-40: exporting it again gives the same, so that the remedy is another training."""

    def teach_nothing(spec: spec_pb2.RunSpec) -> None:
        spec.training.learning_rate = NOTHING_LEARNT

    found = refused(damaged, teach_nothing)
    code = "EXPORT_NOOP_MERGE"
    require_everything_kept_and_refunded(damaged, found, code, tmp_path)
    assert exported_again(damaged, found.run) == code
    assert code in typed(damaged, "artifact", "exports", found.run.name)


def test_a_quantisation_that_came_out_wrong(damaged: Damaged, tmp_path: Path) -> None:
    """A5, 001-40: and nothing of it spoils later exports, when the machine is well again."""
    # The exporter proved its kernel before: it falls ill while the run is trained.
    found = refused(damaged, lambda _: None, damaged.ill.touch)
    damaged.ill.unlink()
    require_everything_kept_and_refunded(damaged, found, "EXPORT_QUANTIZATION_BROKEN", tmp_path)
    assert exported_again(damaged, found.run) == ""
    (entry,) = damaged.client.artifacts.list(run=found.run.name)
    assert [file.kind for file in entry.files] == [LORA, GGUF]
    assert damaged.client.runs.get(found.run.name).state == run_pb2.RUN_STATE_FAILED


def test_an_adapter_of_another_base(damaged: Damaged, tmp_path: Path) -> None:
    """A5, 001-40: the trainer's weights had rotted; the exporter's own are checked beforehand."""
    with rotten(damaged, own_caches.damage_weights):
        found = refused(damaged, lambda _: None)
    require_everything_kept_and_refunded(damaged, found, "EXPORT_WRONG_BASE", tmp_path)


def test_an_adapter_of_another_template(damaged: Damaged, tmp_path: Path) -> None:
    """A5, 001-40: the trainer's tokenizer did not know where a turn begins, the GGUF's does."""
    with rotten(damaged, own_caches.damage_tokenizers):
        found = refused(damaged, lambda _: None)
    require_everything_kept_and_refunded(damaged, found, "EXPORT_VOCABULARY_MISMATCH", tmp_path)


def test_a_conversion_that_rotted_is_made_anew(damaged: Damaged) -> None:
    """001-05: what only this exporter's disk is to blame for costs nobody a run."""
    assert own_caches.damage_conversions(damaged.models)
    run = damaged.client.runs.submit(lesson.spec_for(lesson.read_lesson(), base=BASE))
    assert damaged.client.runs.wait(run.name).state == run_pb2.RUN_STATE_COMPLETED
    log = (damaged.stack.state / "logs" / "exporter.log").read_text()
    assert "base_doubted" in log
