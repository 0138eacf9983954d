"""`tunesmith smoke`: one short run with known-good inputs.

If it succeeds and another run fails, that run's inputs are at fault; if it fails, the platform is,
and the failed check shows where (003-21, 003-22). It costs less than a minute of credit, ends
within its timeout, and deletes what it created.
"""

from __future__ import annotations

import math
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer
from rich.text import Text

from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.work.v1 import work_pb2
from tunesmith.cli import output
from tunesmith.cli.hub_login import with_login
from tunesmith.cli.session import Json, connected, settings
from tunesmith.client import Client
from tunesmith.errors import RunFailedError, TunesmithError, UnavailableError, from_fault

KNOWN_GOOD = Path(__file__).with_name("known_good.jsonl")
BASE = "tunesmith/anvil-3m"
TAG = "smoke"
STEPS = 12
SAMPLE_COUNT = 3
TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.5
TRAINER_SECONDS = 30.0
LOCAL_TIER = "cpu"
# The demo's rate; a pretrained model needs a tenth of it.
ANVIL_LEARNING_RATE = 2e-3
LEARNING_RATE = 2e-4
GGUF_MAGIC = b"GGUF"

WORKS = "The platform works. If your run fails, its inputs are at fault."
WORKS_WITH_YOURS = "The platform works, and so does this input."
BROKEN = "The platform does not work here; it is not your inputs."
BROKEN_WITH_YOURS = (
    "It does not work with this input. Run `tunesmith smoke` without it: if that works, this input "
    "is at fault."
)
# A small public set that is known to train well; it needs internet access.
PUBLIC_SET = {
    "model": "Qwen/Qwen2.5-0.5B",
    "dataset": "trl-lib/Capybara",
    "adapter": "evalstate/qwen-capybara-medium",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check with its result."""

    name: str
    ok: bool
    sentence: str
    seconds: float
    code: str = ""
    next_step: str = ""


@dataclass(slots=True, kw_only=True)
class Smoke:
    """A smoke test in progress: what it created, and its results."""

    client: Client
    base: str
    data: Path
    tier: str
    attested: bool
    waived: bool
    deadline: float
    dataset_id: str = field(default_factory=lambda: f"smoke-{uuid4().hex[:12]}")
    has_dataset: bool = False
    run: run_pb2.Run = field(default_factory=run_pb2.Run)
    checks: list[Check] = field(default_factory=list)

    def examine(self) -> TunesmithError | None:
        """Run the checks in order; the first failure is the result."""
        for name, step in (
            ("platform answers", self._platform),
            ("a trainer is up", self._trainer),
            ("dataset is taken", self._dataset),
            ("run is accepted", self._submit),
            ("run completes", self._complete),
            ("adapter learnt", self._learnt),
            ("export is proven", self._proven),
            ("files come down", self._pulled),
        ):
            error = self._try(name, step)
            if error is not None:
                return error
        return None

    def tidy(self, *, keep: bool) -> None:
        """Delete what was created; a failed run and its files are kept for inspection."""
        if self.has_dataset:
            self._quietly(lambda: self.client.datasets.delete(self.dataset_id))
        if not keep and self.run.artifact:
            self._quietly(lambda: self.client.artifacts.delete(self.run.artifact))

    def _try(self, name: str, step: Callable[[], str]) -> TunesmithError | None:
        started = time.monotonic()
        error: TunesmithError | None = None
        try:
            sentence = step()
        except TunesmithError as refused:
            error, sentence = refused, refused.message
        check = Check(
            name=name,
            ok=error is None,
            sentence=sentence,
            seconds=round(time.monotonic() - started, 1),
            code=error.code if error else "",
            next_step=error.remedy if error else "",
        )
        self.checks.append(check)
        if not settings().as_json:
            _show(check)
        return error

    def _platform(self) -> str:
        account = self.client.billing.account()
        return f"{output.credits_text(account.available)} credits on the plan {account.plan}."

    def _trainer(self) -> str:
        # After a start the platform's trainer needs a few seconds to register.
        deadline = min(self.deadline, time.monotonic() + TRAINER_SECONDS)
        while True:
            tiers = self._tiers()
            wanted = self.tier or (tiers[0] if tiers else "")
            if wanted in tiers:
                self.tier = wanted
                return f"{tiers.count(wanted)} of the tier {wanted}."
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        raise UnavailableError(
            "CAPACITY_NO_GPU_FITS",
            f"No trainer of the tier {wanted} is up." if wanted else "No trainer is up.",
            remedy="Look at `tunesmith node list` and at the trainer's log.",
        )

    def _tiers(self) -> list[str]:
        """Tiers of the running trainers, the one of a machine without a GPU first."""
        tiers = [
            node.tier
            for node in self.client.nodes.list()
            if node.kind == work_pb2.TASK_KIND_TRAIN and node.state != work_pb2.NODE_STATE_LOST
        ]
        return sorted(tiers, key=lambda tier: (tier != LOCAL_TIER, tier))

    def _dataset(self) -> str:
        version = self.client.datasets.push(self.data, dataset_id=self.dataset_id)
        self.has_dataset = True
        return f"{version.row_count} rows, {output.bytes_text(version.size_bytes)}."

    def _submit(self) -> str:
        spec = spec_for(base=self.base, dataset=self.dataset_id, tier=self.tier)
        rights = spec.attestations
        rights.dataset_rights = rights.model_license = self.attested
        rights.refund_waived = self.waived
        self.run, _ = with_login(
            lambda token: self.client.runs.submit(
                spec, display_name=TAG, tags=[TAG], hub_token=token
            ),
            given="",
        )
        return f"{output.last_part(self.run.name)}, {STEPS} steps on {self.tier}."

    def _complete(self) -> str:
        name = self.run.name
        while not self.run.HasField("end_time"):
            if time.monotonic() > self.deadline:
                words = output.stage_words(self.run.stage)
                self._quietly(lambda: self.client.runs.cancel(name))
                raise UnavailableError(
                    "RUN_TIMEOUT",
                    f"The run was not done in time; it was at the stage {words!r}.",
                    remedy="Look at `tunesmith node list` and at the log of that stage's service.",
                )
            time.sleep(POLL_SECONDS)
            self.run = self.client.runs.get(name)
        if self.run.state == run_pb2.RUN_STATE_FAILED:
            raise from_fault(self.run.fault)
        if self.run.state != run_pb2.RUN_STATE_COMPLETED:
            raise RunFailedError("RUN_TRANSITION_ILLEGAL", "The run was cancelled by somebody.")
        return f"Completed after {output.span_text(self.run.clocks.wall)}."

    def _learnt(self) -> str:
        metrics, samples = self.run.metrics, self.run.samples
        if metrics.step != STEPS or not math.isfinite(metrics.loss):
            _unfit(f"It stopped at step {metrics.step} with the loss {metrics.loss}.")
        if len(samples) != SAMPLE_COUNT:
            _unfit(f"The run has {len(samples)} samples in place of {SAMPLE_COUNT}.")
        return f"Loss {metrics.loss:.3f} after {metrics.step} steps, {len(samples)} samples."

    def _proven(self) -> str:
        proofs = self.run.export_proofs
        if not proofs or not all(proof.proven and proof.token_count > 0 for proof in proofs):
            _unfit("The GGUF was not compared with the adapter that was trained.")
        closer = all(proof.adapter_mean_kl <= proof.base_mean_kl for proof in proofs)
        if not closer:
            _unfit("The GGUF behaves more like the base than like the adapter.")
        proof = proofs[0]
        return (
            f"{proof.quantization} agrees with the adapter on "
            f"{proof.adapter_top1_agreement:.0%} of {proof.token_count} tokens."
        )

    def _pulled(self) -> str:
        with tempfile.TemporaryDirectory(prefix="tunesmith-smoke-") as folder:
            paths = self.client.artifacts.pull(self.run.name, folder)
            size_bytes = sum(path.stat().st_size for path in paths)
            if not any(_holds_gguf(path) for path in paths):
                _unfit("None of the files holds a GGUF.")
        return f"{len(paths)} files, {output.bytes_text(size_bytes)}, checked by sha256."

    def _quietly(self, step: Callable[[], object]) -> None:
        """Clean-up; its failure does not fail the smoke test."""
        try:
            step()
        except TunesmithError as error:
            if not settings().as_json:
                output.error_console().print(f"· {error.message}", style="dim", markup=False)


def smoke(
    *,
    base: Annotated[
        str, typer.Option("--base", "-m", help="Base model to try in place of the known-good one.")
    ] = BASE,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="Dataset file to try in place of ours.")
    ] = None,
    tier: Annotated[str, typer.Option("--tier", "-t", help="Tier; default one that is up.")] = "",
    attest: Annotated[
        bool, typer.Option("--attest", help="You may use your own --base and --data for this.")
    ] = False,
    waive_refund: Annotated[
        bool, typer.Option("--waive-refund", help="For a --base that is not verified.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Longest time for all of it, in seconds.", min=0.1)
    ] = TIMEOUT_SECONDS,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the adapter and the GGUF.")] = False,
    json_: Json = False,
) -> None:
    """Check with one short run on known-good inputs that the platform works.

    Exit code 0: it works. Otherwise the code of the failure: 8 no answer or not in time, 9 the run
    failed.
    """
    is_ours = base == BASE and data is None
    with connected() as client:
        found = Smoke(
            client=client,
            base=base,
            data=data or KNOWN_GOOD,
            tier=tier,
            # Our own model and rows need no attestation of the user.
            attested=is_ours or attest,
            waived=waive_refund,
            deadline=time.monotonic() + timeout,
        )
        try:
            error = found.examine()
        finally:
            found.tidy(keep=keep)
    works = error is None
    verdict = (
        (WORKS if is_ours else WORKS_WITH_YOURS)
        if works
        else (BROKEN if is_ours else BROKEN_WITH_YOURS)
    )
    if settings().as_json:
        output.print_json(
            {
                "works": works,
                "verdict": verdict,
                "run": found.run.name,
                "checks": [asdict(check) for check in found.checks],
                "public_known_good": PUBLIC_SET,
            }
        )
    else:
        _say(verdict, works=works)
    if error is not None:
        raise typer.Exit(error.exit_code)


def spec_for(*, base: str, dataset: str, tier: str) -> spec_pb2.RunSpec:
    """The shortest run that uses every part of the platform."""
    return spec_pb2.RunSpec(
        base_model=base,
        datasets=[dataset],
        training=spec_pb2.TrainingConfig(
            max_steps=STEPS,
            micro_batch_size=4,
            learning_rate=ANVIL_LEARNING_RATE if base == BASE else LEARNING_RATE,
            max_sequence_tokens=256,
        ),
        lora=spec_pb2.LoraConfig(rank=8),
        gpu_tier=tier,
    )


def _unfit(sentence: str) -> None:
    raise RunFailedError(
        "EXPORT_VERIFY_MISMATCH", sentence, remedy="Show the run to the operators of the platform."
    )


def _holds_gguf(path: Path) -> bool:
    """Whether an archive has a file that begins as a GGUF does."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        for name in names:
            with archive.open(name) as file:
                if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
                    return True
    return False


def _show(check: Check) -> None:
    mark, style = ("✔ ", "green3") if check.ok else ("✘ ", "red1")
    line = Text.assemble((mark, style), f"{check.name:<17}", (f"{check.seconds:6.1f} s  ", "dim"))
    code = f"{check.code}  " if check.code else ""
    output.console().print(line, Text(f"{code}{check.sentence}"))
    if check.next_step:
        output.console().print(Text.assemble(("  → ", "cyan"), check.next_step))


def _say(verdict: str, *, works: bool) -> None:
    screen = output.console()
    screen.print(verdict, style="bold green3" if works else "bold red1", markup=False)
    if works:
        screen.print(
            f"Where there is internet, a public set is known to be good too: model "
            f"{PUBLIC_SET['model']}, dataset {PUBLIC_SET['dataset']}, adapter "
            f"{PUBLIC_SET['adapter']}. `tunesmith smoke -m {PUBLIC_SET['model']}` tries the model; "
            "-d FILE tries your data.",
            style="dim",
            markup=False,
            highlight=False,
        )
