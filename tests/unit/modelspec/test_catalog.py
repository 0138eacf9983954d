"""The operator's data files."""

from pathlib import Path

import pytest

from lexicon.faults import Fault, FaultCode
from modelspec.catalog import load_catalog

SHIPPED = Path(__file__).parents[3] / "deploy/catalog"


def edited(folder: Path, *, file: str, old: str, new: str) -> Path:
    for path in SHIPPED.glob("*.toml"):
        text = path.read_text().replace("../models", str(SHIPPED.parent / "models"))
        if path.name == file:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / path.name).write_text(text)
    return folder


def test_the_shipped_catalog_is_valid() -> None:
    catalog = load_catalog(SHIPPED)
    assert list(catalog.tiers) == ["cpu", "t4", "a10g", "a100", "h100", "h200"]
    assert set(catalog.plans["local"].tiers) == set(catalog.tiers)
    assert catalog.export_rate_micros_per_minute == 0


def test_the_catalog_has_a_verified_model_of_every_family() -> None:
    """000-23"""
    families = {model.family for model in load_catalog(SHIPPED).models.values() if model.verified}
    assert families >= {
        "gemma", "llama", "mistral", "mixtral", "phi", "qwen", "smollm", "tinyllama",
    }  # fmt: skip


def test_siblings_are_verified_models_of_the_family_then_of_the_size() -> None:
    """000-23"""
    siblings = load_catalog(SHIPPED).siblings(family="qwen", parameter_count=500_000_000)
    assert siblings[0].startswith("Qwen/Qwen2.5-0.5B")


def test_the_a10g_needs_a_paid_plan() -> None:
    """000-15"""
    catalog = load_catalog(SHIPPED)
    assert "free" not in catalog.plans_with("a10g")
    assert "builder" in catalog.plans_with("a10g")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tiers.toml", "memory_mib = 8192", "memory_mib = 0"),
        ("tiers.toml", "memory_mib = 8192", 'memory_mib = "8192"'),
        ("tiers.toml", "memory_mib = 8192", "memory_mb = 8192"),
        ("tiers.toml", "rate_micros_per_minute = 10_000", "rate_micros_per_minute = -1"),
        ("tiers.toml", "flops_per_second = 4e10", "flops_per_second = nan"),
        ("tiers.toml", "export_rate_micros_per_minute = 0", ""),
        ("tiers.toml", "[tiers.cpu]", "[tiers.cpu"),
        ("plans.toml", '"t4"', '"t5"'),
        ("plans.toml", "concurrent_run_count = 16", "concurrent_run_count = true"),
        ("models.toml", "verified = true", "verified = 1"),
        ("models.toml", "anvil/weights", "anvil/nowhere"),
        ("models.toml", "local_path", "lokal_path"),
    ],
)
def test_a_mistake_is_refused_at_start_with_its_place(
    file: str, old: str, new: str, tmp_path: Path
) -> None:
    with pytest.raises(Fault) as caught:
        load_catalog(edited(tmp_path, file=file, old=old, new=new))
    assert caught.value.code is FaultCode.CONFIG_INVALID
    assert file in caught.value.message
