"""What tests of the whole stack share: final bills, and processes that can be killed."""

import os
import signal
import time

from tests.demo.stack import Stack
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.client import Client

BASE = "tunesmith/anvil-3m"
BILL_SECONDS = 30
BACK_SECONDS = 60


def settled(client: Client, run: str) -> billing_pb2.Receipt:
    """The final bill of an ended run."""
    deadline = time.monotonic() + BILL_SECONDS
    while True:
        receipt = client.billing.receipt(run)
        if receipt.settled:
            return receipt
        if time.monotonic() > deadline:
            raise TimeoutError(f"The bill of {run} is not final")
        time.sleep(0.1)


def kill(stack: Stack, name: str) -> int:
    """End a process as `kill -9` does; returns its pid."""
    pid = stack.pids()[name]
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_until_back(stack: Stack, name: str, *, killed: int) -> None:
    """Wait until the supervisor has started it anew and it serves."""
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        pids = stack.pids()
        if pids.get(name, killed) != killed:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} has not come back")
        time.sleep(0.2)
