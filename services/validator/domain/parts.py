"""Whether a submission is complete: its six parts, the attestations, a tier of the plan."""

import difflib
from collections.abc import Iterator

from lexicon.faults import Fault, FaultCode
from lexicon.names import quoted
from validator.domain.case import Case
from validator.domain.finding import CheckOutcome, Finding, outcome, red

MAX_DATASETS = 64
MAX_PROMPTS = 16
MAX_PROMPT_CHARACTERS = 8192


def check_parts(case: Case) -> CheckOutcome:
    """Names each missing required part (000-31)."""
    spec = case.spec
    missing = [
        (name, field)
        for name, field, there in (
            ("base model", "base_model", bool(spec.base_model.strip())),
            ("dataset", "datasets", bool(spec.datasets)),
            ("training config", "training", spec.training is not None),
            ("LoRA config", "lora", spec.lora is not None),
            ("GPU tier", "gpu_tier", bool(spec.gpu_tier)),
            ("rights attestations", "attestations", spec.attestations is not None),
        )
        if not there
    ]
    return outcome(
        "all six parts are there",
        [
            red(
                Fault(
                    FaultCode.CONFIG_LEG_MISSING,
                    f"Required part missing: {name}.",
                    part=name,
                    field=field,
                ),
                field,
            )
            for name, field in missing
        ]
        + list(_too_many(case)),
    )


def check_attestations(case: Case) -> CheckOutcome:
    """Both rights must be attested; a missing part is named by `check_parts`."""
    given = case.spec.attestations
    if given is None:
        return outcome("not given")
    missing = [
        (field, what)
        for field, what, ticked in (
            (
                "attestations.dataset_rights",
                "that you may use the datasets for training",
                given.dataset_rights,
            ),
            (
                "attestations.model_license",
                "that you accept the licence of the base model",
                given.model_license,
            ),
        )
        if not ticked
    ]
    return outcome(
        "rights to datasets and model are attested",
        [
            red(
                Fault(
                    FaultCode.CONFIG_ATTESTATION_MISSING,
                    f"Attestation missing: {what} ({field}).",
                    field=field,
                ),
                field,
            )
            for field, what in missing
        ],
    )


def check_tier(case: Case) -> CheckOutcome:
    """The tier exists and the project's plan includes it (000-32)."""
    name = case.spec.gpu_tier
    if not name:
        return outcome("not chosen")
    tiers, plan = case.catalog.tiers, case.facts.plan
    if case.tier is None:
        near = difflib.get_close_matches(name.lower(), tiers, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        fault = Fault(
            FaultCode.CONFIG_TIER_UNKNOWN,
            f"There is no GPU tier {quoted(name)}; there are {', '.join(tiers)}.{hint}",
            tier=name[:40],
            tiers=", ".join(tiers),
        )
        return outcome("", [red(fault, "gpu_tier")])
    if name not in plan.tiers:
        better = ", ".join(case.catalog.plans_with(name))
        fault = Fault(
            FaultCode.CONFIG_TIER_NOT_IN_PLAN,
            f"GPU tier {name} is not in the plan {plan.plan}; plans that have it: {better}.",
            tier=name,
            plan=plan.plan,
            plans=better,
        )
        return outcome("", [red(fault, "gpu_tier")])
    return outcome(f"{name} ({case.tier.hardware}) is in the plan {plan.plan}")


def _too_many(case: Case) -> Iterator[Finding]:
    spec = case.spec
    if len(spec.datasets) > MAX_DATASETS:
        yield _bound("datasets", f"At most {MAX_DATASETS} datasets make a run.")
    if len(spec.sample_prompts) > MAX_PROMPTS:
        yield _bound("sample_prompts", f"At most {MAX_PROMPTS} sample prompts are taken.")
    for index, prompt in enumerate(spec.sample_prompts[:MAX_PROMPTS]):
        if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARACTERS:
            yield _bound(
                f"sample_prompts[{index}]",
                f"Sample prompt {index + 1} is empty or longer than {MAX_PROMPT_CHARACTERS} "
                "characters.",
            )


def _bound(field: str, message: str) -> Finding:
    return red(Fault(FaultCode.CONFIG_VALUE_OUT_OF_RANGE, message, field=field), field)
