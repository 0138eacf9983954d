"""A hundred sound exports over types, adapters and shapes: no gate raises a false alarm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine
from tests.integration.exporter.test_gates import run

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

# From hardly different from the base to hardly recognisable; odd ranks and few layers among them.
ADAPTERS: dict[str, dict[str, Any]] = {
    "faint": {"b_std": 0.003, "seed": 1},
    "weak": {"b_std": 0.02, "seed": 2},
    "usual": {"b_std": 0.1, "seed": 3},
    "usual-2": {"b_std": 0.1, "seed": 4},
    "strong": {"b_std": 0.4, "seed": 5},
    "very-strong": {"b_std": 1.0, "seed": 6},
    "rank-1": {"b_std": 0.3, "seed": 7, "r": 1},
    "rank-64": {"b_std": 0.05, "seed": 8, "r": 64},
    "rank-stabilised": {"b_std": 0.1, "seed": 9, "use_rslora": True},
    "queries-only": {"b_std": 0.5, "seed": 10, "target_modules": ["q_proj"]},
    "feed-only": {"b_std": 0.2, "seed": 11, "target_modules": ["up_proj", "down_proj"]},
    "dora": {"b_std": 0.1, "seed": 12, "use_dora": True},
}


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_sound_adapter_is_exported_in_every_mix(
    name: str, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(**ADAPTERS[name])
    figures = []
    for mix in Quantization:
        proof = run(engine, adapter, tmp_path, mix=mix).proof
        assert proof.proven
        figures.append((str(mix), proof.adapter_mean_kl, proof.base_mean_kl, proof.loss_delta))
    # Finer mixes stay closer to the adapter than coarser ones, up to noise.
    by_mix = {mix: kl for mix, kl, _, _ in figures}
    assert by_mix["F16"] <= by_mix["Q4_K_M"] + 1e-4 <= by_mix["Q2_K"] + 2e-4, figures
    print(name, *(f"{mix} {kl:.5f}/{base:.4f}/{loss:+.4f}" for mix, kl, base, loss in figures))
