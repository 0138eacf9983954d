"""The table of codes: complete, consistent, and saying what the acceptance table wants said."""

import re
from pathlib import Path

import grpc
import pytest

from lexicon import document
from lexicon.faults import TABLE, Category, Fault, FaultCode, Owner, Retry, Stage
from tunesmith.api.fault.v1 import fault_pb2

CODE_LENGTH_MAX = 63
PAGE = Path(__file__).parents[3] / "docs" / "faults.md"


def test_every_code_has_one_row_in_alphabetical_order() -> None:
    assert list(TABLE) == sorted(FaultCode)


@pytest.mark.parametrize("code", FaultCode)
def test_codes_are_prefix_typed_and_carry_whether_to_retry(code: FaultCode) -> None:
    """002-42"""
    assert code.name == code.value
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)+", code.value)
    assert len(code.value) <= CODE_LENGTH_MAX
    row = TABLE[code]
    assert row.retryable == (row.retry is not Retry.NEVER)
    assert grpc.StatusCode[row.grpc_status] is not grpc.StatusCode.OK
    assert row.meaning.endswith((".", "…"))
    assert row.remedy.endswith(".")
    # More is cut off on the wire.
    assert all(len(text) <= 500 for text in (row.meaning, row.remedy, *row.variants.values()))


@pytest.mark.parametrize("prefix", ["INPUT_", "CONFIG_", "DEP_", "RUNTIME_", "STATE_"])
def test_the_five_prefixes_are_in_use(prefix: str) -> None:
    """002-42"""
    assert any(code.value.startswith(prefix) for code in FaultCode)


def test_categories_are_the_closed_set_of_the_contract() -> None:
    """000-01"""
    names = {name.removeprefix("CATEGORY_") for name in fault_pb2.Category.keys()}  # noqa: SIM118
    assert {category.value for category in Category} == names - {"UNSPECIFIED"}


def test_owners_and_stages_are_those_of_the_contract() -> None:
    owners = {name.removeprefix("OWNER_") for name in fault_pb2.Owner.keys()}  # noqa: SIM118
    assert {owner.value for owner in Owner} == owners - {"UNSPECIFIED"}
    stages = [name.removeprefix("STAGE_").lower() for name in fault_pb2.Stage.keys()]  # noqa: SIM118
    assert [stage.value for stage in Stage] == stages[1:]


def test_a_fault_speaks_by_its_row_unless_told_otherwise() -> None:
    plain = Fault(FaultCode.RUN_NOT_FOUND)
    assert plain.message == TABLE[FaultCode.RUN_NOT_FOUND].meaning
    assert plain.remedy == TABLE[FaultCode.RUN_NOT_FOUND].remedy
    told = Fault(
        FaultCode.RUN_NOT_FOUND, "No run-7.", stage="training", node="nodes/n", rank=0, ratio=0.5
    )
    assert (told.message, told.stage, told.node) == ("No run-7.", Stage.TRAINING, "nodes/n")
    assert told.metadata == {"rank": "0", "ratio": "0.5"}
    assert str(told) == "RUN_NOT_FOUND: No run-7."


def test_hints_differ_between_401_and_404() -> None:
    """002-08"""
    accept = Fault(FaultCode.DEP_MODEL_LOAD_FAILED, variant="hub_401").remedy
    typo = Fault(FaultCode.DEP_MODEL_LOAD_FAILED, variant="hub_404").remedy
    assert "licence" in accept
    assert "`huggingface-cli login`" in accept
    assert "`HF_TOKEN`" in accept
    assert "exact `org/name`" in typo


@pytest.mark.parametrize(
    ("code", "variant", "said"),
    [
        pytest.param(FaultCode.RUNTIME_GPU_OOM, None, "one-off OOM", id="000-11"),
        pytest.param(FaultCode.RUNTIME_GPU_OOM, "repeated", "few hours", id="000-12"),
        pytest.param(FaultCode.RUNTIME_GPU_OOM, "not_vouched", "A10G", id="000-15"),
        pytest.param(FaultCode.DATASET_FIELD_MISSING, None, "JSONL", id="000-19"),
        pytest.param(FaultCode.DATASET_FORMAT_MIXED, None, "Split the file", id="000-20"),
        pytest.param(FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED, None, "SmolLM", id="000-23"),
        pytest.param(FaultCode.MODEL_TOKENIZER_NOT_FOUND, None, "lacks tokenizer", id="000-26"),
        pytest.param(FaultCode.DEP_OLLAMA_REGISTRATION_FAILED, None, "ollama serve", id="002-10"),
        pytest.param(FaultCode.STATE_CHECKPOINT_INVALID, None, "always safe", id="002-13"),
        pytest.param(FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL, None, "airflow", id="002-16"),
        pytest.param(FaultCode.RUNTIME_GGUF_EXPORT_FAILED, None, "build-essential", id="002-27"),
        pytest.param(FaultCode.INTERNAL_UNEXPECTED, None, "contact support", id="004-07"),
        pytest.param(FaultCode.RUNTIME_TRAINING_FAILED, "cuda_oom", "`batch_size`", id="004-08"),
        pytest.param(FaultCode.RUNTIME_TRAINING_FAILED, "value_error", "CausalLM", id="004-09"),
        pytest.param(FaultCode.MODEL_WEIGHTS_INVALID, None, "uncorrupted", id="004-10"),
    ],
)
def test_remedies_say_what_helps(code: FaultCode, variant: str | None, said: str) -> None:
    """Hint texts of 000-11, 000-15, 000-19, 000-26, 002-13, 002-16, 004-08."""
    assert said in Fault(code, variant=variant).remedy


def test_advice_after_oom_comes_in_its_order() -> None:
    """002-05"""
    remedy = TABLE[FaultCode.RUNTIME_GPU_OOM].remedy
    places = [remedy.index(part) for part in ("`--batch-size`", "`--max-seq-length`", "Qwen 2.5")]
    assert places == sorted(places)


def test_variants_fill_in_the_numbers_of_the_fault() -> None:
    fault = Fault(FaultCode.CONFIG_INVALID, "Too many.", variant="training_pool", pool=90)
    assert fault.remedy.startswith("Reduce --samples (Python: samples_per_run) below 90")


def test_whatever_ends_a_run_on_a_verified_model_is_refundable() -> None:
    """A run that was never accepted cost nothing, and cancelling is the user's own choice."""
    kept = {
        code
        for code, row in TABLE.items()
        if not row.refundable and row.category is not Category.SUBMISSION_REJECTED
    }
    assert kept == {
        FaultCode.CONFIG_ENV_MISSING,
        FaultCode.NODE_NOT_REGISTERED,
        FaultCode.RUNTIME_AUTH_NOT_ENFORCED,
        FaultCode.RUN_LEASE_LOST,
    }


def test_the_page_is_what_the_table_says() -> None:
    """002-01: symptoms first, then codes, both from one catalogue."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == document.render(), "run: python -m lexicon.document > docs/faults.md"
    assert page.index("## By symptom") < page.index("## By code")
    assert "`torch.cuda.OutOfMemoryError: CUDA out of memory.`" in page
