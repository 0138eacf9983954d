"""Which method goes to which service, and which methods stay inside.

Every method of every contract is listed here by name, so that a new one is refused until it is
classified: `table` compares these lists with the contracts themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

_API = "tunesmith.api"


class Upstream(StrEnum):
    """A service behind the gateway."""

    SCHEDULER = "scheduler"
    VALIDATOR = "validator"
    BILLING = "billing"
    HUB = "hub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method as its contract describes it."""

    service: str
    name: str
    streams_requests: bool
    streams_responses: bool

    @property
    def path(self) -> str:
        """Full name as it travels, `/package.Service/Method`."""
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a method goes."""

    upstream: Upstream
    streams: bool


FORWARDED: Mapping[str, tuple[Upstream, tuple[str, ...]]] = {
    f"{_API}.artifact.v1.ArtifactService": (
        Upstream.HUB,
        ("GetArtifact", "ListArtifacts", "DeleteArtifact", "CreateDownload", "GetStorageUsage"),
    ),
    f"{_API}.billing.v1.BillingService": (
        Upstream.BILLING,
        ("GetAccount", "ListTransactions", "GetReceipt", "VerifyRun", "GrantCredits", "SetPlan"),
    ),
    f"{_API}.dataset.v1.DatasetService": (
        Upstream.HUB,
        (
            "CreateUpload",
            "CommitUpload",
            "GetDataset",
            "ListDatasets",
            "GetDatasetVersion",
            "ListDatasetVersions",
            "DeleteDataset",
            "PreviewDataset",
        ),
    ),
    f"{_API}.event.v1.EventService": (Upstream.SCHEDULER, ("WatchRun", "ListEvents")),
    f"{_API}.export.v1.ExportService": (
        Upstream.SCHEDULER,
        ("CreateExport", "GetExport", "ListExports", "CancelExport"),
    ),
    f"{_API}.model.v1.ModelService": (
        Upstream.HUB,
        ("ListModels", "GetModel", "ResolveModel", "AddModel", "DeleteModel"),
    ),
    f"{_API}.run.v1.RunService": (
        Upstream.SCHEDULER,
        (
            "SubmitRun",
            "GetRun",
            "ListRuns",
            "CancelRun",
            "StopRun",
            "UpdateRun",
            "DeleteRun",
            "DuplicateRun",
            "RerunRun",
            "CompareRuns",
            "ReportRun",
        ),
    ),
    f"{_API}.validation.v1.ValidationService": (
        Upstream.VALIDATOR,
        ("ValidateRun", "PreviewTraining", "ListTiers"),
    ),
    f"{_API}.work.v1.NodeService": (Upstream.SCHEDULER, ("ListNodes",)),
}

# Answered by the gateway: the table of codes is the same in every service.
OWN: Mapping[str, tuple[str, ...]] = {
    f"{_API}.fault.v1.FaultService": ("ExplainFault", "ListFaults"),
}

# Between services, and from nodes to the scheduler: not reachable from outside.
INSIDE: Mapping[str, tuple[str, ...]] = {
    f"{_API}.artifact.v1.ObjectService": (
        "SignObjects",
        "VerifyObjects",
        "RegisterArtifactFile",
        "HoldDatasetVersions",
        "DeleteRunLeftovers",
        "DeleteExportLeftovers",
    ),
    f"{_API}.billing.v1.BillingService": ("HoldFunds", "ReleaseHold"),
    f"{_API}.work.v1.WorkService": (
        "RegisterNode",
        "LeaseTask",
        "HeartbeatTask",
        "SignInputs",
        "SignOutputs",
        "CompleteTask",
        "FailTask",
        "ReleaseTask",
    ),
}


def table(contracts: Iterable[Method]) -> dict[str, Route]:
    """Where each forwarded method goes, by its full name.

    Args:
        contracts: every method of every contract.
    Raises:
        ValueError: a method is in none of the lists, in two, or in one but in no contract.
    """
    placed: dict[str, Upstream | None] = {}
    for service, (owner, names) in FORWARDED.items():
        _place(placed, service, names, owner)
    for kept in (OWN, INSIDE):
        for service, names in kept.items():
            _place(placed, service, names, None)
    routes: dict[str, Route] = {}
    known = set()
    for method in contracts:
        known.add(method.path)
        if method.path not in placed:
            raise ValueError(f"{method.path} is in no list: forward it, answer it or keep it in")
        upstream = placed[method.path]
        if upstream is None:
            continue
        if method.streams_requests:
            raise ValueError(f"{method.path} streams requests, which the gateway does not forward")
        routes[method.path] = Route(upstream=upstream, streams=method.streams_responses)
    if unknown := sorted(placed.keys() - known):
        raise ValueError(f"{', '.join(unknown)}: in no contract")
    return routes


def _place(
    placed: dict[str, Upstream | None],
    service: str,
    names: tuple[str, ...],
    upstream: Upstream | None,
) -> None:
    for name in names:
        path = f"/{service}/{name}"
        if path in placed:
            raise ValueError(f"{path} is in two lists")
        placed[path] = upstream
