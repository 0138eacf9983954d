"""Secrets at rest open for their owner, with the key that sealed them, and for nobody else."""

import pytest

from chassis.idempotency import fingerprint
from chassis.sealing import Sealer
from tunesmith.api.run.v1 import run_service_pb2

KEY = "a-signing-key-of-at-least-32-bytes!"
OWNER = "projects/p/runs/r"
TOKEN = "hf_plantedPLANTEDplantedPLANTED012345"


def test_what_is_sealed_opens_for_its_owner_and_never_looks_the_same_twice() -> None:
    """003-26"""
    sealer = Sealer(KEY, purpose="hub-tokens")
    one, other = sealer.seal(TOKEN, owner=OWNER), sealer.seal(TOKEN, owner=OWNER)
    assert one != other
    assert TOKEN.encode() not in one
    assert sealer.open(one, owner=OWNER) == sealer.open(other, owner=OWNER) == TOKEN


@pytest.mark.parametrize(
    ("key", "purpose", "owner"),
    [
        ("another-key-of-at-least-32-bytes!!", "hub-tokens", OWNER),
        (KEY, "something-else", OWNER),
        (KEY, "hub-tokens", "projects/p/runs/other"),
    ],
)
def test_it_opens_for_nobody_else(key: str, purpose: str, owner: str) -> None:
    """003-26: a copied row is worth nothing, neither in another row nor without the key."""
    sealed = Sealer(KEY, purpose="hub-tokens").seal(TOKEN, owner=OWNER)
    assert Sealer(key, purpose=purpose).open(sealed, owner=owner) is None


def test_every_changed_bit_and_every_cut_is_found() -> None:
    sealer = Sealer(KEY, purpose="hub-tokens")
    sealed = sealer.seal("abc", owner=OWNER)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert sealer.open(bytes(changed), owner=OWNER) is None
        assert sealer.open(sealed[:place], owner=OWNER) is None


def test_a_renewed_token_is_the_same_request() -> None:
    """003-26: and no hash of a secret is kept."""
    first, second = (
        run_service_pb2.SubmitRunRequest(request_id="a", parent="projects/p", hub_token=token)
        for token in (TOKEN, "")
    )
    assert fingerprint(first) == fingerprint(second)
    second.priority = 1
    assert fingerprint(first) != fingerprint(second)
