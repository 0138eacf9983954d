"""Who may call what: one table of all methods; what is not in it is denied.

A test walks the descriptors of all contracts, so that a new method fails until it is listed here.
"""

from collections.abc import Mapping

from chassis.identity import Caller, Role
from lexicon.faults import Fault, FaultCode

_API = "tunesmith.api"
_USERS = frozenset({Role.PROJECT, Role.OPERATOR})
_USERS_AND_SERVICES = frozenset({Role.PROJECT, Role.OPERATOR, Role.SERVICE})
_SERVICES = frozenset({Role.SERVICE})
_OPERATORS = frozenset({Role.OPERATOR})
_NODES = frozenset({Role.NODE})
_EVERYBODY = frozenset(Role)

# Probes of load balancers and supervisors have no token; the answer says only that it serves.
OPEN: frozenset[str] = frozenset({"/grpc.health.v1.Health/Check"})


def _service(name: str, methods: Mapping[str, frozenset[Role]]) -> dict[str, frozenset[Role]]:
    return {f"/{name}/{method}": roles for method, roles in methods.items()}


ALLOWED: Mapping[str, frozenset[Role]] = {
    **_service(
        f"{_API}.artifact.v1.ArtifactService",
        {
            "GetArtifact": _USERS_AND_SERVICES,
            "ListArtifacts": _USERS_AND_SERVICES,
            "DeleteArtifact": _USERS,
            "CreateDownload": _USERS,
            "GetStorageUsage": _USERS_AND_SERVICES,
        },
    ),
    **_service(
        f"{_API}.artifact.v1.ObjectService",
        {
            "SignObjects": _SERVICES,
            "VerifyObjects": _SERVICES,
            "RegisterArtifactFile": _SERVICES,
            "HoldDatasetVersions": _SERVICES,
            "DeleteRunLeftovers": _SERVICES,
            "DeleteExportLeftovers": _SERVICES,
        },
    ),
    **_service(
        f"{_API}.billing.v1.BillingService",
        {
            "GetAccount": _USERS_AND_SERVICES,
            "ListTransactions": _USERS,
            "GetReceipt": _USERS,
            "VerifyRun": _USERS,
            "GrantCredits": _OPERATORS,
            "SetPlan": _OPERATORS,
            "HoldFunds": _SERVICES,
            "ReleaseHold": _SERVICES,
        },
    ),
    **_service(
        f"{_API}.dataset.v1.DatasetService",
        {
            "CreateUpload": _USERS,
            "CommitUpload": _USERS,
            "GetDataset": _USERS_AND_SERVICES,
            "ListDatasets": _USERS_AND_SERVICES,
            "GetDatasetVersion": _USERS_AND_SERVICES,
            "ListDatasetVersions": _USERS_AND_SERVICES,
            "DeleteDataset": _USERS,
            "PreviewDataset": _USERS_AND_SERVICES,
        },
    ),
    **_service(
        f"{_API}.event.v1.EventService",
        {"WatchRun": _USERS_AND_SERVICES, "ListEvents": _USERS_AND_SERVICES},
    ),
    **_service(
        f"{_API}.export.v1.ExportService",
        {
            "CreateExport": _USERS,
            "GetExport": _USERS_AND_SERVICES,
            "ListExports": _USERS_AND_SERVICES,
            "CancelExport": _USERS,
        },
    ),
    **_service(
        f"{_API}.fault.v1.FaultService",
        {"ExplainFault": _EVERYBODY, "ListFaults": _EVERYBODY},
    ),
    **_service(
        f"{_API}.model.v1.ModelService",
        {
            "ListModels": _USERS_AND_SERVICES,
            "GetModel": _USERS_AND_SERVICES,
            "ResolveModel": _USERS_AND_SERVICES,
            "AddModel": _USERS,
            "DeleteModel": _USERS,
        },
    ),
    **_service(
        f"{_API}.run.v1.RunService",
        {
            "SubmitRun": _USERS,
            "GetRun": _USERS_AND_SERVICES,
            "ListRuns": _USERS_AND_SERVICES,
            "CancelRun": _USERS,
            "StopRun": _USERS,
            "UpdateRun": _USERS,
            "DeleteRun": _USERS,
            "DuplicateRun": _USERS,
            "RerunRun": _USERS,
            "CompareRuns": _USERS,
            "ReportRun": _USERS,
        },
    ),
    **_service(
        f"{_API}.validation.v1.ValidationService",
        {
            "ValidateRun": _USERS_AND_SERVICES,
            "PreviewTraining": _USERS_AND_SERVICES,
            "ListTiers": _USERS_AND_SERVICES,
        },
    ),
    **_service(
        f"{_API}.work.v1.WorkService",
        {
            "RegisterNode": _NODES,
            "LeaseTask": _NODES,
            "HeartbeatTask": _NODES,
            "SignInputs": _NODES,
            "SignOutputs": _NODES,
            "CompleteTask": _NODES,
            "FailTask": _NODES,
            "ReleaseTask": _NODES,
        },
    ),
    **_service(f"{_API}.work.v1.NodeService", {"ListNodes": _USERS_AND_SERVICES}),
    # An endless stream requires an authenticated caller.
    **_service("grpc.health.v1.Health", {"Watch": _EVERYBODY}),
    **_service("grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": _EVERYBODY}),
    **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _EVERYBODY}),
}


def check(method: str, caller: Caller) -> None:
    """Let the caller pass, or refuse.

    Args:
        method: full name, for example `/tunesmith.api.run.v1.RunService/GetRun`.
    Raises:
        Fault: ACCESS_DENIED, also for a method that is not in the table.
    """
    if caller.role not in ALLOWED.get(method, frozenset()):
        raise Fault(FaultCode.ACCESS_DENIED, role=caller.role.value)
