"""Checks of the base model: there, vouched for or waived, of a known kind, with all its parts."""

import dataclasses

import pytest

from lexicon.faults import Fault, FaultCode
from modelspec.shape import ModelShape
from tests.unit.modelspec.published import config, shape
from tests.unit.validator.build import (
    a_model,
    a_published_model,
    a_spec,
    codes,
    examined,
    reds,
    refusal,
)
from validator.domain.finding import Severity
from validator.domain.spec import Attestations, Export


def test_a_model_that_is_not_there_is_refused_as_the_hub_says() -> None:
    """003-03, 002-07"""
    gone = Fault(FaultCode.DEP_MODEL_LOAD_FAILED, "Model a/b was not found", variant="hub_404")
    assert refusal(examined(model=gone, labels=None)) is gone


def test_a_moved_model_is_reported() -> None:
    """003-05"""
    answer = examined(model=a_model(redirected_to="new/name"))
    assert codes(answer) == [FaultCode.MODEL_MOVED]
    assert answer.verdict is Severity.INFO
    assert answer.quote is not None
    assert answer.quote.refundable


def test_a_model_that_is_not_verified_needs_the_waiver() -> None:
    """000-05"""
    fault = refusal(examined(model=a_model(verified=False)))
    assert fault.code is FaultCode.MODEL_CONSENT_MISSING


@pytest.mark.parametrize("where", ["spec", "model"])
def test_with_the_waiver_it_is_amber_and_not_refundable(where: str) -> None:
    """000-05, 000-14"""
    attestations = Attestations(
        dataset_rights=True, model_license=True, refund_waived=where == "spec"
    )
    answer = examined(
        a_spec(attestations=attestations),
        model=a_model(verified=False, refund_waived=where == "model"),
    )
    assert answer.verdict is Severity.AMBER
    assert codes(answer) == [FaultCode.MODEL_UNVERIFIED]
    assert answer.snapshot is not None
    assert answer.snapshot.refund_waived
    assert answer.quote is not None
    assert not answer.quote.refundable


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("LlamaForCausalLM", "model"), ("GraniteForCausalLM", "architecture")],
)
def test_amber_says_whether_the_model_or_its_architecture_is_unproven(
    architecture: str, reason: str
) -> None:
    """000-22: a kind of model that no verified one shares is the reason, and siblings are named."""
    shape_ = ModelShape.from_config(config(architecture))
    answer = examined(model=a_model(verified=False, refund_waived=True, shape=shape_))
    (finding,) = answer.findings
    assert finding.severity is Severity.AMBER
    assert finding.fault.metadata["reason"] == reason
    assert (architecture in finding.fault.message) is (reason == "architecture")
    assert ("tunesmith/anvil-3m" in finding.fault.remedy) is (reason == "architecture")


def test_an_unsupported_architecture_is_named_with_siblings() -> None:
    """000-21, 000-23"""
    with pytest.raises(Fault) as caught:
        ModelShape.from_config(config("SomeNewModel"))
    fault = refusal(examined(model=a_model(shape=caught.value, family="qwen")))
    assert fault.message == "Unsupported architecture: SomeNewModel"
    assert "Qwen/" in fault.remedy


def test_a_model_without_tokenizer_is_refused() -> None:
    """000-24"""
    fault = refusal(examined(model=a_model(tokenizer_present=False), labels=None))
    assert fault.code is FaultCode.MODEL_TOKENIZER_NOT_FOUND
    assert fault.message == "Tokenizer not found for model tunesmith/anvil-3m"


def test_a_missing_chat_template_is_a_warning_and_the_run_goes_on() -> None:
    """000-25"""
    answer = examined(model=a_model(template_missing=True))
    assert [finding.fault.message for finding in answer.findings] == [
        "Chat template missing for model tunesmith/anvil-3m; falling back to ChatML"
    ]
    assert answer.verdict is Severity.INFO
    assert answer.snapshot is not None


def test_pickled_weights_are_refused() -> None:
    """Attack 1, 004-10"""
    fault = refusal(examined(model=a_model(safetensors_present=False)))
    assert fault.code is FaultCode.MODEL_WEIGHTS_INVALID


def test_a_config_that_names_code_is_reported_and_not_followed() -> None:
    """Attack 3"""
    answer = examined(model=a_model(shape=shape(auto_map={"AutoModel": "evil.Evil"})))
    assert codes(answer) == [FaultCode.MODEL_CODE_IGNORED]
    assert not reds(answer)


def test_a_model_the_converter_cannot_read_is_refused_unless_no_gguf_is_wanted() -> None:
    phi = a_published_model("microsoft/Phi-3.5-mini-instruct")
    phi = dataclasses.replace(phi, has_sentencepiece=False)
    spec = a_spec(gpu_tier="a100")
    assert refusal(examined(spec, model=phi)).code is FaultCode.MODEL_NOT_CONVERTIBLE
    without = dataclasses.replace(spec, export=Export(gguf=False))
    assert not reds(examined(without, model=phi))
