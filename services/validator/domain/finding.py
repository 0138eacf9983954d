"""A finding is a graded fault that a run would have; a check yields findings, or none."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from lexicon.faults import Fault


class Severity(enum.IntEnum):
    """Severity of a finding; the numbers order them."""

    INFO = 1
    AMBER = 2
    RED = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finding:
    """One finding, and the part of the spec it is about, for example `lora.rank`."""

    severity: Severity
    fault: Fault
    field: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckOutcome:
    """What one check found: a sentence for the checklist, and findings."""

    detail: str
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the check has no finding against the run."""
        return all(finding.severity is not Severity.RED for finding in self.findings)


def red(fault: Fault, field: str) -> Finding:
    """A reason to refuse."""
    return Finding(severity=Severity.RED, fault=fault, field=field)


def amber(fault: Fault, field: str) -> Finding:
    """A risk that the user takes."""
    return Finding(severity=Severity.AMBER, fault=fault, field=field)


def info(fault: Fault, field: str) -> Finding:
    """Information only."""
    return Finding(severity=Severity.INFO, fault=fault, field=field)


def outcome(detail: str, findings: Iterable[Finding] = ()) -> CheckOutcome:
    """The messages of the findings, or the detail when there are none."""
    found = tuple(findings)
    said = " ".join(finding.fault.message for finding in found)
    return CheckOutcome(detail=said or detail, findings=found)
