"""How the training child words what ended a run, whatever was raised."""

import pytest

from corpus.packing import check_samples_per_run
from lexicon.faults import FaultCode
from tests.support.training import a_plan
from trainer.domain.plan import TrainPlan
from trainer.pipe import Failed, Finished
from trainer.training.__main__ import _ended


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), FaultCode.RUNTIME_GPU_OOM, "MemoryError"),
        (
            RuntimeError("CUDA error: out of memory\nmore"),
            FaultCode.RUNTIME_GPU_OOM,
            "CUDA error: out of memory",
        ),
        (
            NotImplementedError(),
            FaultCode.RUNTIME_TRAINING_FAILED,
            "Training failed: NotImplementedError",
        ),
        (
            RuntimeError("\n"),
            FaultCode.RUNTIME_TRAINING_FAILED,
            "Training failed: ",
        ),
    ],
)
def test_an_error_without_words_still_ends_the_run_with_its_code(
    error: Exception, code: FaultCode, words: str
) -> None:
    """002-02, 003-18: a child that died over the wording would be taken for a lost node."""

    def fail(_: TrainPlan) -> Finished:
        raise error

    ended = _ended(a_plan(), fail)
    assert isinstance(ended, Failed)
    assert (ended.code, ended.message) == (code.value, words)


def test_what_to_do_about_it_comes_along() -> None:
    """002-17: the remedy with the largest number of samples, not the code's general one."""

    def refuse(_: TrainPlan) -> Finished:
        check_samples_per_run(samples_per_run=9, row_count=5, ratio=0.0)
        raise AssertionError

    ended = _ended(a_plan(), refuse)
    assert isinstance(ended, Failed)
    assert ended.remedy == "Reduce --samples (Python: samples_per_run) below 5"
