"""The table of transitions, exhaustively, and the page that is made from it."""

from itertools import product
from pathlib import Path

import pytest

from lexicon.faults import Fault, FaultCode, Stage
from scheduler import diagram
from scheduler.domain.effects import _EFFECTS
from scheduler.domain.run import TERMINAL, State
from scheduler.domain.transitions import TABLE, Effect, Trigger, find, require

PAGE = Path(__file__).parents[3] / "docs" / "run-lifecycle.md"


def test_there_are_exactly_seven_user_states() -> None:
    """001-01 and A18: these seven and no more."""
    assert [state.value for state in State] == [
        "QUEUED",
        "WAITING_FOR_GPU",
        "TRAINING",
        "RETRYING",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
    ]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_leads_out_of_a_terminal_state(state: State) -> None:
    for trigger, stage in product(Trigger, Stage):
        assert find(trigger, state, stage) is None
        with pytest.raises(Fault) as caught:
            require(trigger, state, stage)
        assert caught.value.code is FaultCode.RUN_TRANSITION_ILLEGAL


@pytest.mark.parametrize("trigger", Trigger)
def test_each_trigger_has_a_row_and_one_answer_a_place(trigger: Trigger) -> None:
    rows = [row for row in TABLE if row.trigger is trigger]
    assert rows
    places = [place for row in rows for place in product(row.sources, row.stages)]
    assert len(places) == len(set(places))
    for state, stage in product(State, Stage):
        found = find(trigger, state, stage)
        matching = [row for row in rows if state in row.sources and stage in row.stages]
        assert matching == ([] if found is None else [found])


def test_a_row_that_ends_a_run_says_so_last() -> None:
    for row in TABLE:
        ends = row.target in TERMINAL
        assert (row.stage is Stage.DONE) == ends
        assert (Effect.END in row.effects) == ends
        assert not ends or row.effects[-1] is Effect.END


def test_the_clock_is_settled_before_a_lease_closes_and_before_the_end() -> None:
    """001-29: release, stop clock, Completed, in this order of events."""
    for row in TABLE:
        effects = list(row.effects)
        for clock in (Effect.STOP_CLOCK, Effect.VOID_CLOCK):
            if clock in effects and Effect.CLOSE_LEASE in effects:
                assert effects.index(clock) < effects.index(Effect.CLOSE_LEASE)
                assert effects.index(clock) < effects.index(Effect.MOVE)
        assert (row.ending is not None) == (Effect.CLOSE_LEASE in effects)


def test_every_effect_is_used_and_made() -> None:
    used = {effect for row in TABLE for effect in row.effects}
    assert used == set(Effect)
    assert set(_EFFECTS) == set(Effect) - {Effect.ANNOUNCE}


def test_the_page_of_the_life_of_a_run_is_fresh() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert diagram.drawn(page) == page, "run python -m scheduler.diagram docs/run-lifecycle.md"
