"""Checks of the base model: it exists, is verified or waived, supported and complete."""

from collections.abc import Iterator

from corpus.chat import fallback_warning
from lexicon.faults import TABLE, Fault, FaultCode
from modelspec.artifact import SUPER_BLOCK, coarse_rows
from modelspec.lora import resolve_targets
from modelspec.shape import ModelShape
from validator.domain.case import Case
from validator.domain.facts import ModelFacts
from validator.domain.finding import CheckOutcome, Finding, amber, info, outcome, red

FIELD = "base_model"
ABSENT = "not checked: the base model was not found"


def check_existence(case: Case) -> CheckOutcome:
    """The model exists under the name of the spec (003-03), or was moved (003-05)."""
    match case.facts.model:
        case None:
            return outcome("no base model is named")
        case Fault() as fault:
            return outcome("", [red(fault, FIELD)])
        case model:
            if model.redirected_to is None:
                return outcome(f"{model.model_id} at {model.revision}")
            fault = Fault(
                FaultCode.MODEL_MOVED,
                f"Model {model.model_id} was moved to {model.redirected_to}.",
                moved_to=model.redirected_to,
            )
            return outcome("", [info(fault, FIELD)])


def check_vouching(case: Case) -> CheckOutcome:
    """An unverified model needs the waiver, and remains the user's risk (000-05)."""
    model = case.model
    if model is None:
        return outcome(ABSENT)
    if model.verified:
        return outcome(f"{model.model_id} is verified: a failure would be refunded")
    attestations = case.spec.attestations
    if not model.refund_waived and not (attestations and attestations.refund_waived):
        fault = Fault(
            FaultCode.MODEL_CONSENT_MISSING,
            f"Model {model.model_id} is not verified; a run needs the waiver of the refund "
            "(attestations.refund_waived), or its consent when the model is added.",
            model=model.model_id,
        )
        return outcome("", [red(fault, "attestations.refund_waived")])
    return outcome("", [amber(_unverified(model, case), FIELD)])


def check_architecture(case: Case) -> CheckOutcome:
    """The architecture is one of those we have numbers for (000-21, 004-09)."""
    model = case.model
    if model is None:
        return outcome(ABSENT)
    shape = model.shape
    if isinstance(shape, Fault):
        return outcome("", [red(_with_siblings(shape, case), FIELD)])
    return outcome(
        f"{shape.architecture.name}, {shape.parameter_count():,} parameters",
        _ignored_code(shape),
    )


def check_tokenizer(case: Case) -> CheckOutcome:
    """A missing tokenizer refuses the run; a missing template is replaced by ChatML (000-24/25)."""
    model = case.model
    if model is None:
        return outcome(ABSENT)
    if not model.tokenizer_present:
        fault = Fault(
            FaultCode.MODEL_TOKENIZER_NOT_FOUND,
            f"Tokenizer not found for model {model.model_id}",
            model=model.model_id,
        )
        return outcome("", [red(fault, FIELD)])
    if model.template_missing:
        fault = Fault(
            FaultCode.MODEL_CHAT_TEMPLATE_MISSING,
            fallback_warning(model.model_id),
            model=model.model_id,
        )
        return outcome("", [info(fault, FIELD)])
    return outcome("tokenizer and chat template are there")


def check_weights(case: Case) -> CheckOutcome:
    """Weights are data: safetensors, never pickle."""
    model = case.model
    if model is None:
        return outcome(ABSENT)
    if not model.safetensors_present:
        fault = Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"Model {model.model_id} has no weights in safetensors format; pickled weights are "
            "not loaded.",
            model=model.model_id,
        )
        return outcome("", [red(fault, FIELD)])
    return outcome("weights are safetensors")


def check_targets(case: Case) -> CheckOutcome:
    """The adapter's targets are modules of this architecture."""
    if case.shape is None:
        return outcome(ABSENT)
    try:
        targets = resolve_targets(case.lora.target_modules, case.shape)
    except Fault as fault:
        return outcome("", [red(fault, "lora.target_modules")])
    return outcome(f"adapter on {', '.join(targets)}")


def check_convertibility(case: Case) -> CheckOutcome:
    """The merged model can be converted to GGUF."""
    model, shape = case.model, case.shape
    if model is None or shape is None:
        return outcome(ABSENT)
    if not case.export.gguf:
        return outcome("no GGUF is wanted")
    if shape.architecture.needs_sentencepiece and not model.has_sentencepiece:
        fault = Fault(
            FaultCode.MODEL_NOT_CONVERTIBLE,
            f"Model {model.model_id} has no tokenizer.model, which the GGUF converter needs for "
            f"{shape.architecture.name}.",
            model=model.model_id,
        )
        return outcome("", [red(fault, "export.gguf")])
    coarse = coarse_rows(shape)
    if coarse:
        return outcome(
            f"rows of {', '.join(coarse)} are no multiple of {SUPER_BLOCK}: K-quants store them "
            "in a larger type"
        )
    return outcome(f"{shape.architecture.name} can be converted")


def _unverified(model: ModelFacts, case: Case) -> Fault:
    """Why a model is unverified: its architecture (000-22), or it was never tested."""
    name = "" if isinstance(model.shape, Fault) else model.shape.architecture.name
    proven = {row.architecture for row in case.catalog.models.values() if row.verified}
    message = f"Model {model.model_id} is not verified: a run on it is not refunded when it fails."
    if not name or name in proven:
        return Fault(FaultCode.MODEL_UNVERIFIED, message, model=model.model_id, reason="model")
    near = ", ".join(case.catalog.siblings(family=model.family, parameter_count=0))
    return Fault(
        FaultCode.MODEL_UNVERIFIED,
        f"{message} No verified model has its architecture, {name}: kernels and converter were "
        "never proven on it.",
        remedy=f"{TABLE[FaultCode.MODEL_UNVERIFIED].remedy} For example {near}.",
        model=model.model_id,
        reason="architecture",
        architecture=name,
        siblings=near,
    )


def _with_siblings(fault: Fault, case: Case) -> Fault:
    """An unsupported architecture, with verified models as alternatives (000-23)."""
    if fault.code is not FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED or case.model is None:
        return fault
    near = ", ".join(case.catalog.siblings(family=case.model.family, parameter_count=0))
    remedy = f"{fault.remedy} For example {near}."
    return Fault(fault.code, fault.message, remedy=remedy, siblings=near, **fault.metadata)


def _ignored_code(shape: ModelShape) -> Iterator[Finding]:
    if shape.code_fields:
        fault = Fault(
            FaultCode.MODEL_CODE_IGNORED,
            f"The model's config names code ({', '.join(shape.code_fields)}); it is never run.",
            fields=", ".join(shape.code_fields),
        )
        yield info(fault, FIELD)
