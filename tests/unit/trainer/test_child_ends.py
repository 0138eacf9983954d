"""How the training child words what ended a run, whatever was raised."""

import pytest

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
