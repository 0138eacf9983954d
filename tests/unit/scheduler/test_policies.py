"""The queue, labels and recipes."""

from datetime import timedelta

import pytest

from lexicon.faults import Fault, FaultCode
from scheduler.domain import labels, queueing, recipes
from scheduler.domain.queueing import Candidate
from scheduler.domain.run import Labels
from scheduler.domain.tasks import TaskKind
from tests.support.runs import NOON


def a_candidate(
    run: str, *, priority: int = 0, minute: int = 0, running: int = 0, kind: TaskKind | None = None
) -> Candidate:
    return Candidate(
        run=run,
        kind=kind or TaskKind.TRAIN,
        priority=priority,
        queue_time=NOON + timedelta(minutes=minute),
        running_count=running,
        concurrency_limit=2,
    )


def test_higher_priority_comes_first_then_the_oldest() -> None:
    """001-32: a user can bump a run in the queue."""
    found = queueing.in_order(
        [
            a_candidate("late", minute=2),
            a_candidate("early", minute=1),
            a_candidate("bumped", minute=9, priority=1),
            a_candidate("waits", priority=-1),
        ]
    )
    assert [each.run for each in found] == ["bumped", "early", "late", "waits"]


def test_a_plan_bounds_training_and_not_exports() -> None:
    full = a_candidate("full", running=2)
    export = a_candidate("export", running=2, kind=TaskKind.EXPORT)
    assert queueing.in_order([full, export]) == [export]


def test_labels_change_by_adding_and_removing() -> None:
    before = Labels(display_name="one", tags=("a", "b"), priority=1)
    after = labels.changed(
        before, display_name=None, priority=-100, add_tags=["c", "b"], remove_tags=["a"]
    )
    assert after == Labels(display_name="one", tags=("b", "c"), priority=-100)


def test_a_recipe_is_changed_at_a_path_and_its_original_stays() -> None:
    recipe = {"training": {"epochs": 2, "seed": 1}, "gpu_tier": "cpu"}
    changed = recipes.changed(
        recipe, {"training.epochs": "3", "lora.rank": "8", "training.seed": "null"}
    )
    assert changed == {"training": {"epochs": 3}, "gpu_tier": "cpu", "lora": {"rank": 8}}
    assert recipe["training"] == {"epochs": 2, "seed": 1}
    found = recipes.differences(recipe, changed)
    assert [(each.field, each.value, each.other_value) for each in found] == [
        ("training.epochs", "2", "3"),
        ("training.seed", "1", ""),
        ("lora.rank", "", "8"),
    ]


@pytest.mark.parametrize(
    "changes",
    [{"gpu_tier.x": "1"}, {"a": "{"}, {"": "1"}, {"a..b": "1"}, {".".join("abcdefghijk"): "1"}],
)
def test_a_change_that_cannot_be_made_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(Fault) as caught:
        recipes.changed({"gpu_tier": "cpu"}, changes)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
