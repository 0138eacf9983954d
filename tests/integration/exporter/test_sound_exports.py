"""A hundred sound exports of one model over types and adapters: no gate raises a false alarm.

`python -m tests.chaos.sound_exports` does the same over every family of the catalog.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine
from tests.integration.exporter.families import ADAPTERS
from tests.integration.exporter.making import export_bundle

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_a_sound_adapter_is_exported_in_every_mix(
    name: str, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(**ADAPTERS[name])
    by_mix = {}
    for mix in Quantization:
        proof = export_bundle(engine, adapter, tmp_path, mix).proof
        assert proof.proven
        by_mix[mix] = proof.adapter_mean_kl
    # Finer mixes stay closer to the adapter than coarser ones, up to noise.
    assert by_mix[Quantization.F16] <= by_mix[Quantization.Q4_K_M] + 1e-4
    assert by_mix[Quantization.Q4_K_M] <= by_mix[Quantization.Q2_K] + 1e-4
