"""The data files an operator edits: tiers, plans and base models; checked as a whole at start."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lexicon.faults import Fault, FaultCode

Value = TypeVar("Value")

CURRENCY = "CREDIT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A kind of node with its price and capabilities.

    Attributes:
        memory_bytes: device memory; of the host on a CPU.
        rate_micros_per_minute: price of a whole minute in millionths of a credit.
        largest_parameter_count: models with more parameters are refused, whatever the estimate.
        flops_per_second: floating-point operations that training achieves on it.
        step_seconds: overhead of an optimizer step that does not depend on its size.
        fixed_seconds: samples, saving and storing at the end of a run.
        capabilities: what it can do, for example `bf16`, `cuda`, `fp8`.
    """

    tier: str
    hardware: str
    memory_bytes: int
    rate_micros_per_minute: int
    largest_parameter_count: int
    flops_per_second: float
    step_seconds: float
    fixed_seconds: float
    capabilities: frozenset[str]

    @property
    def is_gpu(self) -> bool:
        """Whether it trains on an NVIDIA GPU."""
        return "cuda" in self.capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a project may use."""

    plan: str
    tiers: tuple[str, ...]
    dataset_quota_bytes: int
    artifact_quota_bytes: int
    concurrent_run_count: int
    monthly_credit_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """A base model of the platform's catalog.

    Attributes:
        local_path: folder of its files when they ship with the platform, None for hub models.
    """

    model_id: str
    family: str
    verified: bool
    architecture: str
    parameter_count: int
    context_tokens: int
    gated: bool
    license: str
    revision: str
    local_path: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All of it, each by its id, in file order."""

    tiers: Mapping[str, Tier]
    plans: Mapping[str, Plan]
    models: Mapping[str, CatalogModel]
    export_rate_micros_per_minute: int

    def plans_with(self, tier: str) -> tuple[str, ...]:
        """Plans that may use a tier."""
        return tuple(plan.plan for plan in self.plans.values() if tier in plan.tiers)

    def siblings(self, *, family: str, parameter_count: int, count: int = 3) -> tuple[str, ...]:
        """Verified models nearest in family, then in size."""
        verified = [model for model in self.models.values() if model.verified]
        verified.sort(
            key=lambda model: (
                model.family != family,
                abs(model.parameter_count - parameter_count),
                model.model_id,
            )
        )
        return tuple(model.model_id for model in verified[:count])


def load_catalog(folder: Path) -> Catalog:
    """Reads `tiers.toml`, `plans.toml` and `models.toml`.

    Raises:
        Fault: CONFIG_INVALID that names file and field.
    """
    tiers_table = _Table.read(folder / "tiers.toml")
    tiers = {row.place: _tier(row) for row in tiers_table.rows("tiers")}
    plans = {
        row.place: _plan(row, tiers) for row in _Table.read(folder / "plans.toml").rows("plans")
    }
    models = {
        row.place: _model(row, folder) for row in _Table.read(folder / "models.toml").rows("models")
    }
    return Catalog(
        tiers=tiers,
        plans=plans,
        models=models,
        export_rate_micros_per_minute=tiers_table.integer("export_rate_micros_per_minute"),
    )


def _tier(row: "_Table") -> Tier:
    tier = Tier(
        tier=row.place,
        hardware=row.take("hardware", str),
        memory_bytes=row.integer("memory_mib", minimum=1) << 20,
        rate_micros_per_minute=row.integer("rate_micros_per_minute"),
        largest_parameter_count=row.integer("largest_parameter_count", minimum=1),
        flops_per_second=row.number("flops_per_second"),
        step_seconds=row.number("step_seconds"),
        fixed_seconds=row.number("fixed_seconds"),
        capabilities=frozenset(row.texts("capabilities")),
    )
    row.finish()
    return tier


def _plan(row: "_Table", tiers: Mapping[str, Tier]) -> Plan:
    plan = Plan(
        plan=row.place,
        tiers=row.texts("tiers"),
        dataset_quota_bytes=row.integer("dataset_quota_mib") << 20,
        artifact_quota_bytes=row.integer("artifact_quota_mib") << 20,
        concurrent_run_count=row.integer("concurrent_run_count", minimum=1),
        monthly_credit_micros=row.integer("monthly_credit_micros"),
    )
    for tier in plan.tiers:
        if tier not in tiers:
            raise row.fault(f"tier {tier!r} is not one of tiers.toml")
    row.finish()
    return plan


def _model(row: "_Table", folder: Path) -> CatalogModel:
    local = row.take("local_path", str, default="")
    local_path = (folder / local).resolve() if local else None
    if local_path is not None and not (local_path / "config.json").is_file():
        raise row.fault("local_path has no config.json")
    model = CatalogModel(
        model_id=row.place,
        family=row.take("family", str),
        verified=row.take("verified", bool),
        architecture=row.take("architecture", str),
        parameter_count=row.integer("parameter_count", minimum=1),
        context_tokens=row.integer("context_tokens", minimum=1),
        gated=row.take("gated", bool, default=False),
        license=row.take("license", str),
        revision=row.take("revision", str, default="main"),
        local_path=local_path,
    )
    row.finish()
    return model


class _Table:
    """A TOML table that knows its place in the file and which of its fields were read."""

    def __init__(self, values: Mapping[str, Any], *, file: str, place: str = "") -> None:
        self.place = place
        self._values = dict(values)
        self._file = file

    @classmethod
    def read(cls, path: Path) -> "_Table":
        try:
            return cls(tomllib.loads(path.read_text("utf-8")), file=path.name)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Fault(
                FaultCode.CONFIG_INVALID, f"Catalog file {path.name} cannot be read: {error}"
            ) from error

    def rows(self, field: str) -> Sequence["_Table"]:
        """The sub-tables of a field by their names."""
        tables = self.take(field, dict)
        if not tables or not all(isinstance(values, dict) for values in tables.values()):
            raise self.fault(f"{field!r} has no tables")
        return [_Table(values, file=self._file, place=name) for name, values in tables.items()]

    def take(self, field: str, kind: type[Value], *, default: Value | None = None) -> Value:
        value = self._values.pop(field, default)
        if value is None:
            raise self.fault(f"{field!r} is missing")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.fault(f"{field!r} is not a {kind.__name__}")
        return value

    def integer(self, field: str, *, minimum: int = 0) -> int:
        value = self.take(field, int)
        if value < minimum:
            raise self.fault(f"{field!r} is less than {minimum}")
        return value

    def number(self, field: str) -> float:
        value = self._values.pop(field, None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fault(f"{field!r} is not a number above 0")
        return float(value)

    def texts(self, field: str) -> tuple[str, ...]:
        values = self.take(field, list)
        if not all(isinstance(value, str) for value in values):
            raise self.fault(f"{field!r} is not a list of texts")
        return tuple(values)

    def finish(self) -> None:
        """Refuses fields that were not read, most likely misspelt ones."""
        if self._values:
            raise self.fault(f"{next(iter(self._values))!r} is not a field")

    def fault(self, what: str) -> Fault:
        where = f"{self._file}, {self.place!r}" if self.place else self._file
        return Fault(FaultCode.CONFIG_INVALID, f"Catalog {where}: {what}", file=self._file)
