"""What the trainer itself says of a base that it cannot train, whatever the validator let pass."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from corpus.chat import CHATML
from deploy.models.anvil.grammar import HOME
from lexicon.faults import Fault, FaultCode
from tests.support.training import FP32, a_plan
from trainer.domain.plan import TrainPlan
from trainer.training import peft_rail
from trainer.training.dataset import Desk


@pytest.fixture
def plan(tmp_path: Path) -> TrainPlan:
    """A plan over a copy of Anvil that a test may damage."""
    folder = tmp_path / "base"
    shutil.copytree(HOME / "weights", folder)
    plan = a_plan()
    return replace(plan, base=replace(plan.base, model_id="org/some-model", folder=str(folder)))


def test_an_unknown_architecture_is_named_exactly(plan: TrainPlan) -> None:
    """000-21: by both looks at the model, the one for its width and the one for its weights."""
    path = Path(plan.base.folder) / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "model_type": "new", "architectures": ["SomeNewModel"]}))
    for look in (peft_rail.width_of, lambda base: peft_rail.load_base(base, FP32)):
        with pytest.raises(Fault) as caught:
            look(plan.base)
        assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED
        assert caught.value.message == "Unsupported architecture: SomeNewModel"


def test_a_model_without_a_tokenizer_is_not_trained(plan: TrainPlan) -> None:
    """000-24"""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(plan.base.folder) / name).unlink(missing_ok=True)
    with pytest.raises(Fault) as caught:
        Desk.prepare(plan, warn=lambda *_: None)
    assert caught.value.code is FaultCode.MODEL_TOKENIZER_NOT_FOUND
    assert caught.value.message == "Tokenizer not found for model org/some-model"


def test_a_model_without_a_template_is_trained_with_chatml_and_told(plan: TrainPlan) -> None:
    """000-25"""
    folder = Path(plan.base.folder)
    (folder / "chat_template.jinja").unlink()
    config = folder / "tokenizer_config.json"
    if config.exists():
        settings = json.loads(config.read_text("utf-8"))
        settings.pop("chat_template", None)
        config.write_text(json.dumps(settings))
    told: list[str] = []
    desk = Desk.prepare(plan, warn=lambda code, text: told.append(text))
    expected = "Chat template missing for model org/some-model; falling back to ChatML"
    assert told == [expected]
    assert desk.template.source == CHATML
    assert desk.rows
