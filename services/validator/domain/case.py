"""A submission with all facts about it: the input of every check."""

from dataclasses import dataclass

from modelspec.catalog import Catalog, Tier
from modelspec.lora import LoraSpec
from modelspec.shape import ModelShape
from validator.domain.facts import Facts, ModelFacts
from validator.domain.filling import fill_export, fill_lora, fill_training
from validator.domain.spec import Export, Lora, Spec, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A submission under examination.

    Attributes:
        training: filled in; that of an empty config when the part is missing.
        tier: None when the catalog does not have it.
        model: None when it was not found.
        shape: None when the model's dimensions are not known.
    """

    spec: Spec
    facts: Facts
    catalog: Catalog
    training: Training
    lora: Lora
    export: Export
    tier: Tier | None
    model: ModelFacts | None
    shape: ModelShape | None

    @property
    def lora_spec(self) -> LoraSpec:
        """The settings that determine the size of the adapter; only for values in range."""
        assert self.lora.rank is not None
        return LoraSpec(
            rank=self.lora.rank,
            target_modules=self.lora.target_modules,
            use_dora=bool(self.lora.use_dora),
        )


def examine(spec: Spec, facts: Facts, catalog: Catalog) -> Case:
    """Builds a case."""
    tier = catalog.tiers.get(spec.gpu_tier)
    model = facts.model if isinstance(facts.model, ModelFacts) else None
    shape = model.shape if model is not None and isinstance(model.shape, ModelShape) else None
    return Case(
        spec=spec,
        facts=facts,
        catalog=catalog,
        training=fill_training(spec.training or Training(), tier=tier, shape=shape),
        lora=fill_lora(spec.lora or Lora()),
        export=fill_export(spec.export),
        tier=tier,
        model=model,
        shape=shape,
    )
