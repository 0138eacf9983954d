"""Every family of the catalog: converted, merged, quantised, asked; against transformers."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from exporter.domain.quantization import Quantization
from exporter.engine.base import cache_key, prepare_base
from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from tests.integration.exporter.families import FAMILIES, make_base
from tests.integration.exporter.making import (
    convert_classically,
    export_bundle,
    make_adapter,
    matrices_of,
    merge_classically,
    require_peft_s,
    write_reference,
)
from tests.integration.exporter.test_identity import differing, one_pass, quantize_with_llama

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

# Root mean square of the differences; the logits themselves go to about 1.3.
LOGIT_BOUND = 1e-3
TOKENS = [1, 17, 300, 42, 511, 9, 77, 640, 128, 3, 250, 999]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_is_exported_like_the_classical_chain_and_answers_like_transformers(
    name: str, engine: Engine, tmp_path: Path
) -> None:
    base_folder, adapter, merged_folder = (tmp_path / part for part in ("base", "ad", "merged"))
    make_base(FAMILIES[name], base_folder)
    make_adapter(base_folder, adapter, b_std=0.02, dtype=torch.float16)
    merge_classically(base_folder, adapter, merged_folder, dtype=torch.float16)
    for path in base_folder.glob("tokenizer*"):
        shutil.copyfile(path, merged_folder / path.name)
    cache = tmp_path / "cache"
    key = cache_key("base", llama_version=engine.llama_version)
    base = prepare_base(base_folder, cache, key, vendor=engine.vendor)
    classic = tmp_path / "classic.gguf"
    convert_classically(base_folder, classic, vendor=engine.vendor, outtype="f16")
    # The links that the converter sees have another folder's name, which it takes for a title.
    assert differing(base.gguf, classic) == []
    unquantized, quantized = tmp_path / "ours-F16.gguf", tmp_path / "ours-Q4_K_M.gguf"
    one_pass(engine, base, adapter, Quantization.F16, unquantized)
    one_pass(engine, base, adapter, Quantization.Q4_K_M, quantized)
    quantize_with_llama(unquantized, classic, Quantization.Q4_K_M)
    assert differing(quantized, classic) == []
    convert_classically(merged_folder, classic, vendor=engine.vendor, outtype="f16")
    require_peft_s(
        matrices_of(unquantized), matrices_of(classic), bits=11, rounded_first=name == "mixtral"
    )
    _require_same_logits(tmp_path / "ours-F16.gguf", merged_folder)
    with LlamaModel(tmp_path / "ours-Q4_K_M.gguf", thread_count=1) as model:
        assert len(model.answer(TOKENS, max_tokens=8)) > 0
    # The gates of a whole export: no false alarm, in the mix of most and of least room.
    write_reference(base_folder, adapter)
    here = replace(engine, cache=cache)
    for mix in (Quantization.BF16, Quantization.Q2_K):
        exported = export_bundle(here, adapter, tmp_path, mix, checkpoint=base_folder, key="base")
        assert exported.proof.proven


@torch.inference_mode()
def _require_same_logits(gguf: Path, checkpoint: Path) -> None:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    wanted = reference(torch.tensor([TOKENS])).logits[0].numpy()
    with LlamaModel(gguf, thread_count=1) as model:
        found = np.stack([row for _, row in model.logits(TOKENS, range(len(TOKENS)))])
    # llama.cpp rounds activations to float16 before each product, and takes GELU from a float16
    # table.
    error = float(np.sqrt(np.square(found[:, : wanted.shape[1]] - wanted).mean()))
    assert error <= LOGIT_BOUND, error
