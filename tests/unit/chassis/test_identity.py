"""Tokens: what is accepted, what is refused, and who may name what."""

import base64
import json
from datetime import timedelta

import jwt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chassis import identity
from chassis.identity import Caller, Role
from lexicon.faults import Fault, FaultCode
from lexicon.names import ModelName, RunName
from tests.support.chassis import KEY
from tests.unit.chassis.support import NOW

OTHER_KEY = "another-signing-key-" + 32 * "o"
TOKEN = identity.mint(KEY, subject="me", role=Role.PROJECT, project="acme", now=NOW)


def refusal(token: str, *, key: str = KEY, seconds: float = 0) -> Fault:
    with pytest.raises(Fault) as refused:
        identity.verify(key, token, NOW + timedelta(seconds=seconds))
    assert refused.value.code is FaultCode.ACCESS_TOKEN_INVALID
    return refused.value


def test_a_token_says_who_calls() -> None:
    caller = identity.verify(KEY, TOKEN, NOW)
    assert caller == Caller(subject="me", role=Role.PROJECT, project="acme")


def test_an_expired_token_is_refused_to_the_second() -> None:
    token = identity.mint(KEY, subject="s", role=Role.SERVICE, ttl_seconds=10, now=NOW)
    assert identity.verify(KEY, token, NOW + timedelta(seconds=9)).role is Role.SERVICE
    assert "expired" in refusal(token, seconds=10).message


def test_another_key_is_refused() -> None:
    refusal(TOKEN, key=OTHER_KEY)


def test_keys_are_replaced_without_a_gap() -> None:
    """Attack list 14: rotation with two live keys."""
    both = f"{OTHER_KEY},{KEY}"
    assert identity.verify(both, TOKEN, NOW).project == "acme"
    fresh = identity.mint(both, subject="me", role=Role.OPERATOR, now=NOW)
    assert identity.verify(OTHER_KEY, fresh, NOW).role is Role.OPERATOR
    refusal(fresh, key=KEY)


@pytest.mark.parametrize("algorithm", ["none", "HS384", "HS512"])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    claims = {"sub": "me", "role": "operator", "iat": int(NOW.timestamp())}
    key = "" if algorithm == "none" else KEY * 2
    token = jwt.encode(claims, key, algorithm=algorithm)
    refusal(token, key=f"{KEY},{KEY * 2}")


def test_a_token_without_a_signature_is_refused() -> None:
    head, body, _ = TOKEN.split(".")
    refusal(f"{head}.{body}.")
    unsigned = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).decode().rstrip("=")
    refusal(f"{unsigned}.{body}.")


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("Aa0-_.xZ9"))
def test_a_changed_character_is_refused(place: int, character: str) -> None:
    # The last character of base64 carries bits that say nothing.
    assume(character != TOKEN[place] and place != len(TOKEN) - 1)
    refusal(TOKEN[:place] + character + TOKEN[place + 1 :])


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"sub": "", "role": "operator"},
        {"sub": "me"},
        {"sub": "me", "role": "root"},
        {"sub": "me", "role": "project"},
        {"sub": "me", "role": "operator", "project": "acme"},
        {"sub": ["me"], "role": "operator"},
        {"sub": "me", "role": "operator", "exp": "never"},
        {"sub": "me", "role": "operator", "iat": "now"},
        {"sub": "me", "role": "operator", "iat": int(NOW.timestamp()) + 3600},
    ],
)
def test_signed_nonsense_is_refused(claims: dict[str, object]) -> None:
    refusal(jwt.encode({"iat": int(NOW.timestamp()), **claims}, KEY, algorithm="HS256"))


@pytest.mark.parametrize("text", ["", ".", "a.b.c", "x" * 10_000, "\x00", "é.é.é"])
def test_texts_that_are_no_tokens_are_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("key", ["", ",", "short", f"{KEY},short"])
def test_a_weak_key_is_refused(key: str) -> None:
    with pytest.raises(Fault) as refused:
        identity.check_key(key)
    assert refused.value.code is FaultCode.CONFIG_INVALID


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, FaultCode.ACCESS_TOKEN_MISSING),
        ("", FaultCode.ACCESS_TOKEN_MISSING),
        ("Bearer", FaultCode.ACCESS_TOKEN_INVALID),
        ("Basic dXNlcjpwdw==", FaultCode.ACCESS_TOKEN_INVALID),
        (TOKEN, FaultCode.ACCESS_TOKEN_INVALID),
    ],
)
def test_headers_without_a_bearer_token_are_refused(header: str | None, code: FaultCode) -> None:
    with pytest.raises(Fault) as refused:
        identity.token_of(header)
    assert refused.value.code is code


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer {TOKEN}".encode()]
)
def test_the_scheme_is_read_in_any_case(header: str | bytes) -> None:
    assert identity.token_of(header) == TOKEN


@pytest.mark.parametrize(
    "name",
    [
        "projects/other/runs/r",
        "projects/acme2/runs/r",
        "projects/",
        "other",
        "nodes/n/projects/acme",
        RunName(project="other", run="r"),
    ],
)
def test_names_of_other_projects_are_refused(name: str | RunName) -> None:
    caller = Caller(subject="me", role=Role.PROJECT, project="acme")
    with pytest.raises(Fault) as refused:
        caller.require_project(name)
    assert refused.value.code is FaultCode.ACCESS_PROJECT_FORBIDDEN


@pytest.mark.parametrize(
    "name", ["projects/acme/runs/r", "projects/acme", "acme", ModelName(model="catalog-model")]
)
def test_names_of_the_own_project_and_the_catalog_pass(name: str | ModelName) -> None:
    Caller(subject="me", role=Role.PROJECT, project="acme").require_project(name)


def test_services_and_operators_name_all_projects_and_nodes_none() -> None:
    for role in (Role.SERVICE, Role.OPERATOR):
        Caller(subject="s", role=role).require_project("projects/any/runs/r")
    with pytest.raises(Fault):
        Caller(subject="nodes/n", role=Role.NODE).require_project("projects/any/runs/r")


def test_a_node_speaks_for_itself_alone() -> None:
    node = Caller(subject="nodes/n1", role=Role.NODE)
    node.require_node("nodes/n1")
    Caller(subject=identity.ANY_NODE, role=Role.NODE).require_node("nodes/n2")
    for caller in (node, Caller(subject="nodes/n2", role=Role.OPERATOR)):
        with pytest.raises(Fault) as refused:
            caller.require_node("nodes/n2")
        assert refused.value.code is FaultCode.ACCESS_DENIED


def test_a_service_token_is_made_anew_before_it_expires() -> None:
    seconds = [NOW.timestamp()]
    token = identity.service_token(KEY, "billing", clock=lambda: seconds[0])
    first = token()
    seconds[0] += 60
    assert token() == first
    seconds[0] += 100
    second = token()
    assert second != first
    now = NOW + timedelta(seconds=160)
    assert identity.verify(KEY, second, now) == Caller(subject="billing", role=Role.SERVICE)


def test_outside_a_call_there_is_no_caller() -> None:
    with pytest.raises(Fault):
        identity.current_caller()
    with identity.calling_as(Caller(subject="me", role=Role.OPERATOR)):
        assert identity.current_caller().subject == "me"
    with pytest.raises(Fault):
        identity.current_caller()
