"""What the trainer itself says of a base that it cannot train, whatever the validator let pass."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from corpus.chat import CHATML
from deploy.models.anvil.grammar import HOME
from lexicon.faults import Fault, FaultCode
from tests.support.training import FP32, a_plan, changed, some_data
from trainer.domain.plan import TrainPlan
from trainer.training import peft_library
from trainer.training.dataset import load_tokenizer, require_known_tokens


@pytest.fixture
def plan(tmp_path: Path) -> TrainPlan:
    """A plan over a copy of Anvil that a test may damage."""
    folder = tmp_path / "base"
    shutil.copytree(HOME / "weights", folder)
    plan = a_plan()
    return changed(plan, base=replace(plan.base, model_id="org/some-model", folder=str(folder)))


def test_an_unknown_architecture_is_named_exactly(plan: TrainPlan) -> None:
    """000-21: by both looks at the model, the one for its width and the one for its weights."""
    path = Path(plan.base.folder) / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "model_type": "new", "architectures": ["SomeNewModel"]}))
    for look in (peft_library.width_of, lambda base: peft_library.load_base(base, FP32)):
        with pytest.raises(Fault) as caught:
            look(plan.base)
        assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED
        assert caught.value.message == "Unsupported architecture: SomeNewModel"


def test_a_model_without_a_tokenizer_is_not_trained(plan: TrainPlan) -> None:
    """000-24"""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (Path(plan.base.folder) / name).unlink(missing_ok=True)
    with pytest.raises(Fault) as caught:
        some_data(plan, warn=lambda *_: None)
    assert caught.value.code is FaultCode.MODEL_TOKENIZER_NOT_FOUND
    assert caught.value.message == "Tokenizer not found for model org/some-model"


def test_a_tokenizer_that_cuts_and_fills_is_read_without_both(plan: TrainPlan) -> None:
    """transformers stores the settings of its last call in the file; a long row stays whole."""
    path = Path(plan.base.folder) / "tokenizer.json"
    whole = load_tokenizer(plan.base).encode("a long row " * 9).ids
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(path))
    assert load_tokenizer(plan.base).encode("a long row " * 9).ids == whole


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
    data = some_data(plan, warn=lambda code, text: told.append(text))
    expected = "Chat template missing for model org/some-model; falling back to ChatML"
    assert told == [expected]
    assert data.template.source == CHATML
    assert data.rows


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_rows(plan: TrainPlan, folder: Path, *, good_count: int, odd_count: int) -> TrainPlan:
    """The plan over conversations that alternate, and others that begin with the assistant."""
    asked = {"role": "user", "content": "Hi"}
    answered = {"role": "assistant", "content": "Ho"}
    rows = [[asked, answered]] * good_count + [[answered, asked, answered]] * odd_count
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows))
    (Path(plan.base.folder) / "chat_template.jinja").write_text(ALTERNATING)
    (dataset,) = plan.data.datasets
    return changed(plan, datasets=(replace(dataset, path=str(path)),))


def test_a_few_rows_that_the_template_refuses_are_left_out_and_named(
    plan: TrainPlan, tmp_path: Path
) -> None:
    """001-25: one conversation that begins with the assistant does not end a run of thousands."""
    told: list[tuple[FaultCode, str]] = []
    odd = with_rows(plan, tmp_path, good_count=9, odd_count=2)
    data = some_data(odd, warn=lambda code, text: told.append((code, text)))
    assert len(data.rows) == 9
    ((code, text),) = told
    assert code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID
    assert text.startswith("2 rows were left out: row 10, 11. Row 10 of projects/")
    assert text.endswith("the chat template refuses the conversation: roles must alternate")


def test_a_template_that_refuses_most_rows_ends_the_run_and_names_the_first(
    plan: TrainPlan, tmp_path: Path
) -> None:
    odd = with_rows(plan, tmp_path, good_count=2, odd_count=2)
    with pytest.raises(Fault) as caught:
        some_data(odd, warn=lambda *_: None)
    assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID
    assert caught.value.metadata["row"] == "3"


def test_a_template_that_fails_is_no_matter_of_single_rows(plan: TrainPlan, tmp_path: Path) -> None:
    """A render that took too long on a busy machine must not change what an attempt trains on."""
    odd = with_rows(plan, tmp_path, good_count=9, odd_count=1)
    failing = ALTERNATING.replace("raise_exception('roles must alternate')", "1 / 0")
    (Path(plan.base.folder) / "chat_template.jinja").write_text(failing)
    with pytest.raises(Fault) as caught:
        some_data(odd, warn=lambda *_: None)
    assert caught.value.code is FaultCode.MODEL_CHAT_TEMPLATE_INVALID


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(plan: TrainPlan) -> None:
    """004-09: on a GPU the look-up beyond the end would take the process along."""
    data = some_data(plan, warn=lambda *_: None)
    model = peft_library.load_base(plan.base, FP32)
    count = model.get_input_embeddings().weight.shape[0]
    assert peft_library.vocabulary_of(plan.base) == count
    require_known_tokens(data, count)
    with pytest.raises(Fault) as caught:
        require_known_tokens(data, 8)
    assert caught.value.code is FaultCode.MODEL_CONFIG_INVALID


def test_a_tokenizer_at_which_its_library_panics_is_none(plan: TrainPlan) -> None:
    """000-24: a panic is no Exception, and would end the process in place of the run."""
    model = {
        "type": "BPE", "vocab": {"ab": 0, "a": 1, "b": 2}, "merges": ["a b"],
        "continuing_subword_prefix": "a prefix longer than any token",
    }  # fmt: skip
    path = Path(plan.base.folder) / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(Fault) as caught:
        some_data(plan, warn=lambda *_: None)
    assert caught.value.code is FaultCode.MODEL_TOKENIZER_NOT_FOUND


def test_a_model_whose_files_lack_a_weight_is_refused(plan: TrainPlan) -> None:
    """004-09: the library fills it with noise, and what is trained on that is of no use."""
    peft_library.require_whole(plan.base)
    path = Path(plan.base.folder) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    for look in (peft_library.require_whole, lambda base: peft_library.load_base(base, FP32)):
        with pytest.raises(Fault, match=r"layers\.1\.mlp\.up_proj") as caught:
            look(plan.base)
        assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID


def test_a_model_whose_weights_have_another_shape_is_refused(plan: TrainPlan) -> None:
    """004-09: its config belongs to another model."""
    path = Path(plan.base.folder) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    with pytest.raises(Fault, match="embed_tokens") as caught:
        peft_library.load_base(plan.base, FP32)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
