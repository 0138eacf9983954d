"""Credits of the project, and the nodes of the platform."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.aio.connection import Connection
from tunesmith.aio.runs import Runs
from tunesmith.api.billing.v1 import billing_pb2, billing_service_pb2
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2
from tunesmith.names import full_name


class Billing:
    """Credits of the project."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._project = connection.credentials.project

    async def account(self) -> billing_pb2.Account:
        """The wallet: owned, held, available."""
        request = billing_service_pb2.GetAccountRequest(name=f"projects/{self._project}/account")
        answer = await self._connection.call(request, billing_service_pb2.GetAccountResponse)
        return answer.account

    async def transactions(
        self, *, run: str = "", limit: int | None = None
    ) -> Sequence[billing_pb2.LedgerEntry]:
        """Ledger entries, newest first; of one run where it is named."""
        return await self._connection.pages(
            billing_service_pb2.ListTransactionsRequest(
                parent=f"projects/{self._project}", run=self._run_name(run) if run else ""
            ),
            billing_service_pb2.ListTransactionsResponse,
            lambda page: page.entries,
            limit=limit,
        )

    async def receipt(self, run: str) -> billing_pb2.Receipt:
        """The bill of a run with every interval that counted or did not."""
        request = billing_service_pb2.GetReceiptRequest(run=self._run_name(run))
        answer = await self._connection.call(request, billing_service_pb2.GetReceiptResponse)
        return answer.receipt

    async def verify(self, run: str) -> billing_service_pb2.VerifyRunResponse:
        """Whether the ledger agrees with the events of a run."""
        request = billing_service_pb2.VerifyRunRequest(run=self._run_name(run))
        return await self._connection.call(request, billing_service_pb2.VerifyRunResponse)

    async def quote(self, spec: spec_pb2.RunSpec, *, hub_token: str = "") -> billing_pb2.Quote:
        """The price of a spec, also without attestations. Nothing is created.

        Raises:
            TunesmithError: the spec would be refused.
        """
        answer = await Runs(self._connection).check(as_question(spec), hub_token=hub_token)
        return answer.quote

    def _run_name(self, run: str) -> str:
        return full_name(self._project, "runs", run)


class Nodes:
    """Workers of the platform."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self) -> Sequence[work_pb2.Node]:
        """The nodes as the scheduler knows them."""
        return await self._connection.pages(
            work_service_pb2.ListNodesRequest(),
            work_service_pb2.ListNodesResponse,
            lambda page: page.nodes,
            limit=None,
        )


def as_question(spec: spec_pb2.RunSpec) -> spec_pb2.RunSpec:
    """The spec with attestations filled in, since a price needs none."""
    question = spec_pb2.RunSpec()
    question.CopyFrom(spec)
    question.attestations.dataset_rights = True
    question.attestations.model_license = True
    return question
