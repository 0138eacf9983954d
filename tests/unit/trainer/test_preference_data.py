"""What the preference methods read: rows of their formats, their weights, their place in a plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Method
from tests.support.training import a_plan, a_preference_plan, some_data
from trainer import wire
from trainer.domain.plan import (
    Base,
    DatasetFile,
    PreferencePlan,
    TrainPlan,
    ValidationPlan,
    essence,
    verdict_weights,
)
from trainer.training.batches import KtoExample, Pair
from trainer.training.dataset import TrainingData
from trainer.training.preference import objective_of
from trainer.training.validation import split
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.api.work.v1 import work_pb2

PAIR = {"prompt": "Who are you?", "chosen": "A sailor, ahoy!", "rejected": "No one."}
LIKED = {"prompt": "Who are you?", "completion": "A sailor, ahoy!", "label": True}
DISLIKED = {"prompt": "What is a hammer for?", "completion": "No idea.", "label": False}


def a_file(folder: Path, rows: Sequence[dict[str, Any]], data_format: str) -> DatasetFile:
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetFile(name="d", format=data_format, path=str(path))


def prepare(plan: TrainPlan, warnings: list[FaultCode] | None = None) -> TrainingData:
    said = [] if warnings is None else warnings
    return some_data(plan, warn=lambda code, _: said.append(code))


def words(data: TrainingData, row: Any) -> str:
    """What a row trains on."""
    return str(data.tokenizer.decode(row.labels[row.labels >= 0].tolist()))


@pytest.mark.parametrize("method", [Method.DPO, Method.ORPO, Method.SIMPO])
def test_a_pair_shares_its_prompt_and_trains_on_its_answers(method: Method, tmp_path: Path) -> None:
    file = a_file(tmp_path, [PAIR], "preference")
    data = prepare(a_preference_plan(method, datasets=(file,)))
    (pair,) = data.rows
    assert isinstance(pair, Pair)
    assert words(data, pair.chosen).startswith("A sailor, ahoy!")
    assert words(data, pair.rejected).startswith("No one.")
    read = [row.ids[row.labels < 0].tolist() for row in pair.sequences]
    assert read[0][: len(read[1])] == read[1][: len(read[0])]


def test_verdicts_keep_their_label_and_are_balanced(tmp_path: Path) -> None:
    file = a_file(tmp_path, [LIKED, LIKED, LIKED, DISLIKED], "kto")
    data = prepare(a_preference_plan(Method.KTO, datasets=(file,)))
    rows = [row for row in data.rows if isinstance(row, KtoExample)]
    assert [row.desirable for row in rows] == [True, True, True, False]
    assert [row.weight for row in rows] == [1.0, 1.0, 1.0, 3.0]
    assert words(data, rows[3].completion).startswith("No idea.")


def test_validation_rows_weigh_what_training_rows_weigh(tmp_path: Path) -> None:
    trained = a_file(tmp_path, [LIKED, LIKED, DISLIKED], "kto")
    held = a_file(tmp_path, [LIKED, DISLIKED], "kto")
    validation = ValidationPlan(
        holdout_ratio=0.0, dataset=held, every_steps=1, early_stop_patience=0,
        early_stop_min_delta=0.0,
    )  # fmt: skip
    plan = a_preference_plan(Method.KTO, datasets=(trained,), validation=validation)
    rows, validating = split(plan.data.validation, prepare(plan), seed=plan.batches.seed)
    weights = [row.weight for row in validating.rows if isinstance(row, KtoExample)]
    assert weights == [1.0, 2.0]
    assert len(rows) == 3


def test_a_pair_with_a_side_without_words_is_left_out_and_told(tmp_path: Path) -> None:
    """A prompt as long as the limit leaves nothing to compare."""
    long = PAIR | {"prompt": "Who are you? " * 40}
    file = a_file(tmp_path, [PAIR, long], "preference")
    warnings: list[FaultCode] = []
    plan = a_preference_plan(Method.DPO, datasets=(file,), max_sequence_tokens=64)
    data = prepare(plan, warnings)
    assert len(data.rows) == 1
    assert warnings == [FaultCode.DATASET_ROW_INVALID, FaultCode.DATASET_NO_TRAINED_TOKENS]


@pytest.mark.parametrize(
    ("method", "row", "data_format"),
    [
        (Method.SFT, PAIR, "preference"),
        (Method.DPO, LIKED, "kto"),
        (Method.KTO, PAIR, "preference"),
        (Method.ORPO, {"text": "Ahoy!"}, "text"),
    ],
)
def test_rows_that_the_method_does_not_learn_from_are_refused(
    method: Method, row: dict[str, Any], data_format: str, tmp_path: Path
) -> None:
    plan = a_preference_plan(method, datasets=(a_file(tmp_path, [row], data_format),))
    with pytest.raises(Fault) as caught:
        prepare(plan)
    assert caught.value.code is FaultCode.CONFIG_INVALID_SETTING


@pytest.mark.parametrize(
    ("given", "counts", "expected"),
    [
        ((None, None), (30, 10), (1.0, 3.0)),
        ((None, None), (10, 40), (4.0, 1.0)),
        ((None, None), (10, 10), (1.0, 1.0)),
        ((None, None), (10, 0), (1.0, 1.0)),
        ((2.0, None), (30, 10), (2.0, 6.0)),
        ((None, 2.0), (30, 10), (2.0 / 3, 2.0)),
        ((1.0, 1.0), (30, 10), (1.0, 1.0)),
    ],
)
def test_both_kinds_of_verdicts_weigh_the_same_unless_the_user_says_otherwise(
    given: tuple[float | None, float | None],
    counts: tuple[int, int],
    expected: tuple[float, float],
) -> None:
    """The lower end of what the paper of KTO advises: 1:1 up to 4:3."""
    plan = PreferencePlan(
        beta=0.1, simpo_gamma=0.5, desirable_weight=given[0], undesirable_weight=given[1]
    )
    found = verdict_weights(plan, desirable_count=counts[0], undesirable_count=counts[1])
    assert found == pytest.approx(expected)


def test_the_constants_belong_to_the_essence_of_a_plan() -> None:
    """Else a checkpoint of another beta would be taken for this run's."""
    plans = [
        a_preference_plan(Method.DPO),
        a_preference_plan(
            Method.DPO,
            preference=PreferencePlan(
                beta=0.2, simpo_gamma=0.5, desirable_weight=None, undesirable_weight=None
            ),
        ),
        a_preference_plan(Method.ORPO),
    ]
    assert len({str(essence(plan)) for plan in plans}) == 3


def plan_of(training: spec_pb2.TrainingConfig) -> TrainPlan:
    lease = work_pb2.Lease(
        run="projects/p/runs/r",
        train=work_pb2.TrainTask(
            training=training,
            datasets=[work_pb2.DatasetInput(name="d", format=dataset_pb2.FORMAT_KTO)],
        ),
    )
    return wire.plan_from_lease(
        lease,
        base=Base(base_model="b", model_id="b", revision="", folder="/b", digest="d"),
        dataset_paths=[Path("/d.jsonl")],
        validation_path=None,
        checkpoint_folders=(),
        work_folder=Path("/w"),
        log_path=Path("/l"),
    )


def test_a_lease_says_what_is_preferred_how_strongly() -> None:
    config = spec_pb2.PreferenceConfig(beta=0.3, simpo_gamma=0.7, desirable_weight=2.0)
    plan = plan_of(spec_pb2.TrainingConfig(method=spec_pb2.METHOD_KTO, preference=config))
    assert plan.objective.method is Method.KTO
    assert plan.objective.preference == PreferencePlan(
        beta=0.3, simpo_gamma=0.7, desirable_weight=2.0, undesirable_weight=None
    )


def test_supervised_training_has_no_preference() -> None:
    assert plan_of(spec_pb2.TrainingConfig(method=spec_pb2.METHOD_SFT)).objective.preference is None
    assert objective_of(a_plan().objective) is None
