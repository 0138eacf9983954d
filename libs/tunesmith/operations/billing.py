"""What can be asked about money, and the list of nodes that earn it."""

from __future__ import annotations

from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2
from tunesmith.names import full_name
from tunesmith.operations.steps import PAGE_SIZE, call, pages
from tunesmith.transport import Operation

BILLING_SERVICE = "/tunesmith.api.billing.v1.BillingService"


def get_account(project: str) -> Operation[billing_pb2.Account]:
    """The wallet of the project."""
    request = billing_service_pb2.GetAccountRequest(name=f"projects/{project}/account")
    response = billing_service_pb2.GetAccountResponse
    return (yield from call(BILLING_SERVICE, "GetAccount", request, response)).account


def list_transactions(
    project: str, *, run: str, limit: int | None
) -> Operation[list[billing_pb2.LedgerEntry]]:
    """Ledger entries, newest first; of one run where it is named."""
    request = billing_service_pb2.ListTransactionsRequest(
        parent=f"projects/{project}",
        page_size=PAGE_SIZE,
        run=full_name(project, "runs", run) if run else "",
    )
    return (
        yield from pages(
            BILLING_SERVICE,
            "ListTransactions",
            request,
            billing_service_pb2.ListTransactionsResponse,
            lambda page: page.entries,
            limit=limit,
        )
    )


def get_receipt(project: str, run: str) -> Operation[billing_pb2.Receipt]:
    """The bill of a run with its intervals and entries."""
    request = billing_service_pb2.GetReceiptRequest(run=full_name(project, "runs", run))
    response = billing_service_pb2.GetReceiptResponse
    return (yield from call(BILLING_SERVICE, "GetReceipt", request, response)).receipt


def verify_run(project: str, run: str) -> Operation[billing_service_pb2.VerifyRunResponse]:
    """Whether the ledger agrees with the events of a run."""
    request = billing_service_pb2.VerifyRunRequest(run=full_name(project, "runs", run))
    response = billing_service_pb2.VerifyRunResponse
    return (yield from call(BILLING_SERVICE, "VerifyRun", request, response))


def as_question(spec: spec_pb2.RunSpec) -> spec_pb2.RunSpec:
    """The spec as it is shown to ask for its price, which is known before rights are attested."""
    question = spec_pb2.RunSpec()
    question.CopyFrom(spec)
    question.attestations.dataset_rights = True
    question.attestations.model_license = True
    return question


def list_nodes() -> Operation[list[work_pb2.Node]]:
    """The nodes as the scheduler knows them."""
    request = work_service_pb2.ListNodesRequest(page_size=PAGE_SIZE)
    return (
        yield from pages(
            "/tunesmith.api.work.v1.NodeService",
            "ListNodes",
            request,
            work_service_pb2.ListNodesResponse,
            lambda page: page.nodes,
            limit=None,
        )
    )
