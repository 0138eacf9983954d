"""The tracking tools: TensorBoard, MLflow, Weights & Biases; each is imported when it is wanted.

None of them is a dependency of the platform. TensorBoard and Weights & Biases need their package on
the node (the extra `tracking`); MLflow is called by its REST API and needs none.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import httpx

from lexicon.faults import Fault, FaultCode
from trainer.tracking import AttemptEnd, Point, Subject, Tool, Tracker

CALL_SECONDS = 20.0
MILLISECONDS = 1000
# Source: MLflow REST API, https://mlflow.org/docs/latest/rest-api.html, "Log Batch": a call takes
# at most 1000 metrics and 100 parameters; a parameter's value at most 6000 characters.
MLFLOW_API = "/api/2.0/mlflow"
MLFLOW_PARAMETERS_MAX = 100
MLFLOW_VALUE_CHARACTERS_MAX = 500
EXPERIMENT_PREFIX = "tunesmith/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The operator's wish: which tool, and where it is.

    Attributes:
        uri: folder of TensorBoard or of offline W&B, address of the MLflow server.
        token: MLflow's bearer token; W&B reads its own WANDB_API_KEY.
    """

    tool: Tool
    uri: str
    token: str | None = None

    def __post_init__(self) -> None:
        """Refuse a tool without a place.

        Raises:
            Fault: CONFIG_ENV_MISSING.
        """
        if self.tool is not Tool.NONE and not self.uri:
            raise Fault(
                FaultCode.CONFIG_ENV_MISSING,
                f"TUNESMITH_TRACKING={self.tool} needs TUNESMITH_TRACKING_URI",
                variable="TUNESMITH_TRACKING_URI",
            )


def tracker_for(destination: Destination, subject: Subject) -> Callable[[], Tracker] | None:
    """What begins to report the subject; None when nobody wants it."""
    match destination.tool:
        case Tool.NONE:
            return None
        case Tool.TENSORBOARD:
            return lambda: TensorBoard(Path(destination.uri), subject)
        case Tool.MLFLOW:
            return lambda: Mlflow(destination.uri, subject, token=destination.token)
        case Tool.WANDB:
            return lambda: WeightsAndBiases(destination.uri, subject)
        case _:
            assert_never(destination.tool)


class TensorBoard:
    """Event files in `<folder>/<project>/<run>`, as `tensorboard --logdir <folder>` reads them."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(
            logdir=str(folder / subject.project / subject.run),
            # What a lost attempt wrote beyond its last checkpoint is done again.
            purge_step=subject.from_step + 1,
        )
        lines = "\n".join(f"    {name}: {value}" for name, value in subject.settings.items())
        self._writer.add_text("settings", lines, subject.from_step)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.figures.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.unix_seconds)
        self._writer.flush()

    def end(self, outcome: AttemptEnd) -> None:
        self._writer.add_text("outcome", outcome.value)
        self._writer.close()


class Mlflow:
    """A run on an MLflow server, in the experiment `tunesmith/<project>`; an attempt is a run."""

    def __init__(
        self,
        uri: str,
        subject: Subject,
        *,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=uri.rstrip("/") + MLFLOW_API,
            headers=headers,
            timeout=CALL_SECONDS,
            transport=transport,
        )
        name = f"{EXPERIMENT_PREFIX}{subject.project}"
        tags = {
            "mlflow.source.name": "tunesmith",
            "tunesmith.run": subject.run,
            "tunesmith.attempt": str(subject.attempt),
        }
        created = self._call(
            "/runs/create",
            experiment_id=self._experiment(name),
            run_name=f"{subject.run}.{subject.attempt}",
            start_time=_now_millis(),
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )
        self._run_id = created["run"]["info"]["run_id"]
        settings = list(subject.settings.items())[:MLFLOW_PARAMETERS_MAX]
        self._call(
            "/runs/log-batch",
            run_id=self._run_id,
            params=[
                {"key": key, "value": value[:MLFLOW_VALUE_CHARACTERS_MAX]}
                for key, value in settings
            ],
        )

    def log(self, points: Sequence[Point]) -> None:
        self._call(
            "/runs/log-batch",
            run_id=self._run_id,
            metrics=[
                {
                    "key": name,
                    "value": value,
                    "timestamp": round(point.unix_seconds * MILLISECONDS),
                    "step": point.step,
                }
                for point in points
                for name, value in point.figures.items()
            ],
        )

    def end(self, outcome: AttemptEnd) -> None:
        status = {
            AttemptEnd.COMPLETED: "FINISHED",
            AttemptEnd.FAILED: "FAILED",
            AttemptEnd.CANCELLED: "KILLED",
        }[outcome]
        self._call("/runs/update", run_id=self._run_id, status=status, end_time=_now_millis())
        self._http.close()

    def _experiment(self, name: str) -> str:
        """Id of the experiment, made when it is not there; another node may be making it, too."""
        known = self._known_experiment(name)
        if known is None:
            made = self._http.post("/experiments/create", json={"name": name})
            if made.status_code == httpx.codes.OK:
                return str(made.json()["experiment_id"])
            known = self._known_experiment(name)
            if known is None:
                made.raise_for_status()
        return str(known)

    def _known_experiment(self, name: str) -> str | None:
        found = self._http.get("/experiments/get-by-name", params={"experiment_name": name})
        if found.status_code == httpx.codes.NOT_FOUND:
            return None
        found.raise_for_status()
        return str(found.json()["experiment"]["experiment_id"])

    def _call(self, path: str, **body: object) -> Any:
        response = self._http.post(path, json=body)
        response.raise_for_status()
        return response.json()


class WeightsAndBiases:
    """A run of Weights & Biases in the project `tunesmith-<project>`.

    With WANDB_API_KEY in the agent's environment it goes to their service, else it stays in the
    folder for `wandb sync`. Only figures are sent: no code, host or process.
    """

    def __init__(self, folder: str, subject: Subject) -> None:
        import wandb

        Path(folder).mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            dir=folder,
            project=f"tunesmith-{subject.project}",
            name=f"{subject.run}.{subject.attempt}",
            group=subject.run,
            config=dict(subject.settings),
            mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
            reinit="create_new",
            save_code=False,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.figures, "_timestamp": point.unix_seconds}, step=point.step)

    def end(self, outcome: AttemptEnd) -> None:
        self._run.summary["outcome"] = outcome.value
        self._run.finish(exit_code=0 if outcome is AttemptEnd.COMPLETED else 1)


def _now_millis() -> int:
    return round(time.time() * MILLISECONDS)
