"""Adapters and bases of many kinds, each with the verdict that it must have: no silent difference.

Exported means that the file computes what PEFT computes with the adapter on its base, unmerged.
Everything else is refused: by a setting or tensor that is named, or by the proof.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from exporter.pipe import Exported
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL, export_bundle, matrices_of, model_in

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

TOKENS: Final = [1, 17, 300, 42, 511, 9, 77, 640]
# Root mean square of differences over that of the logits; the file's numbers are bfloat16.
LOGIT_BOUND: Final = 0.03
PREFIX: Final = "base_model.model.model."
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An adapter and what the exporter must say of it.

    Attributes:
        lora: settings of PEFT's `LoraConfig` by which it is made.
        config: settings that are written into its `adapter_config.json` afterwards.
        weights: changes its tensors afterwards.
        files: changes other files of its folder.
        verdict: None when it is exported.
        names: what the message must name.
        is_untied: whether embedding and head become two tensors.
    """

    lora: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Callable[[Weights], None] | None = None
    files: Callable[[Path], None] | None = None
    base: str = "anvil"
    mix: str = "BF16"
    verdict: FaultCode | None = None
    names: str = ""
    is_untied: bool = False


def unsupported(name: str, value: Any, **more: Any) -> Case:
    return Case(
        config={name: value, **more}, verdict=FaultCode.EXPORT_ADAPTER_UNSUPPORTED, names=name
    )


def malformed(name: str, value: Any) -> Case:
    return Case(config={name: value}, verdict=FaultCode.MODEL_WEIGHTS_INVALID, names=name)


def mismatched(mix: str = "Q4_K_M", **changes: Any) -> Case:
    return Case(**changes, mix=mix, verdict=FaultCode.EXPORT_MERGE_MISMATCH)


def other_base(name: str, mix: str) -> Case:
    return Case(base=name, mix=mix, verdict=FaultCode.EXPORT_WRONG_BASE)


def changed_twice(weights: Weights) -> None:
    weights[f"{PREFIX}layers.0.mlp.up_proj.weight"] = torch.zeros(768, 256)


def not_finite(weights: Weights) -> None:
    weights[f"{PREFIX}layers.1.mlp.up_proj.lora_B.weight"][3, 2] = float("nan")


def untrained(weights: Weights) -> None:
    for name in weights:
        if "lora_B" in name:
            weights[name].zero_()


def exchanged_layers(weights: Weights) -> None:
    for part in ("lora_A", "lora_B"):
        names = [f"{PREFIX}layers.{layer}.mlp.up_proj.{part}.weight" for layer in (0, 2)]
        weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]


def exchanged_projections(weights: Weights) -> None:
    for part in ("lora_A", "lora_B"):
        names = [f"{PREFIX}layers.1.mlp.{name}_proj.{part}.weight" for name in ("gate", "up")]
        weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]


def lost_layer(weights: Weights) -> None:
    for name in list(weights):
        if ".layers.2." in name:
            del weights[name]


def without_a_place(weights: Weights) -> None:
    weights[f"{PREFIX}layers.9.mlp.up_proj.lora_A.weight"] = torch.ones(8, 256)
    weights[f"{PREFIX}layers.9.mlp.up_proj.lora_B.weight"] = torch.ones(768, 8)


def of_another_shape(weights: Weights) -> None:
    name = f"{PREFIX}layers.0.mlp.up_proj.lora_B.weight"
    weights[name] = torch.cat([weights[name], weights[name]])


def one_factor_less(weights: Weights) -> None:
    del weights[f"{PREFIX}layers.0.mlp.up_proj.lora_A.weight"]


def unknown_tensor(weights: Weights) -> None:
    weights[f"{PREFIX}layers.0.mlp.up_proj.lora_C.weight"] = torch.ones(8, 8)


def untrained_embedding(weights: Weights) -> None:
    base = load_file(ANVIL / "model.safetensors")["model.embed_tokens.weight"]
    weights[f"{PREFIX}embed_tokens.weight"] = base


def resized_embedding(weights: Weights) -> None:
    base = load_file(ANVIL / "model.safetensors")["model.embed_tokens.weight"]
    weights[f"{PREFIX}embed_tokens.weight"] = torch.cat([base, base[:2]])


def exchanged_ids(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    one, other = sorted(words, key=words.get)[500:502]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def saved_anew(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(sorted(words.items(), reverse=True))
    path.write_text(json.dumps(tokenizer, indent=1), encoding="utf-8")


def another_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|turn|>"))


CASES: dict[str, Case] = {
    # Exported, and equal to PEFT.
    "rank 1": Case(lora={"r": 1}),
    "rank 8, all linear": Case(),
    "rank 16": Case(lora={"r": 16}),
    "rank 32": Case(lora={"r": 32}),
    "rank-stabilised": Case(lora={"use_rslora": True}),
    "dora": Case(lora={"use_dora": True}),
    "alpha by group": Case(lora={"alpha_pattern": {"(q_proj|up_proj)$": 48}}),
    "alpha by class": Case(lora={"alpha_pattern": {r"layers\.[01]\..*": 40}}),
    "alpha by anchor": Case(lora={"alpha_pattern": {"^q_proj": 99, "o_proj": 2}}),
    "rank by pattern": Case(lora={"rank_pattern": {"(?:q|k)_proj": 3, r".*\.2\.mlp\..*": 12}}),
    "some layers": Case(lora={"target_modules": ["o_proj"], "layers_to_transform": [1, 3]}),
    "bare parameters": Case(
        lora={"target_modules": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]}
    ),
    "gaussian start": Case(lora={"init_lora_weights": "gaussian"}),
    "projections trained whole": Case(
        lora={"target_modules": ["q_proj"], "modules_to_save": ["up_proj"]}
    ),
    "tied base, embedding": Case(
        lora={"target_modules": ["embed_tokens", "q_proj"]}, is_untied=True
    ),
    "tied base, head": Case(lora={"target_modules": ["lm_head", "q_proj"]}, is_untied=True),
    "tied base, both apart": Case(
        lora={"target_modules": ["embed_tokens", "lm_head"]}, is_untied=True
    ),
    "tied base, both tied": Case(
        lora={"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    ),
    "tied base, embedding trained whole": Case(
        lora={"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        is_untied=True,
    ),
    "tied base, head trained whole": Case(
        lora={"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        is_untied=True,
    ),
    "tied base, both trained whole and tied": Case(
        lora={
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        }
    ),
    "embedding saved untrained": Case(weights=untrained_embedding),
    "tokenizer saved anew": Case(files=saved_anew),
    # Refused by the name of a setting.
    "alora": unsupported("alora_invocation_tokens", [5, 6]),
    "layer replication": unsupported("layer_replication", [[0, 2], [1, 4]]),
    "pissa": unsupported("init_lora_weights", "pissa"),
    "pissa in steps": unsupported("init_lora_weights", "pissa_niter_4"),
    "olora": unsupported("init_lora_weights", "olora"),
    "loftq": unsupported("init_lora_weights", "loftq", loftq_config={"loftq_bits": 4}),
    "corda": unsupported("init_lora_weights", "corda"),
    "qalora": unsupported("use_qalora", True, qalora_group_size=16),
    "biases": unsupported("bias", "all"),
    "bias of the factors": unsupported("lora_bias", True),
    "transposed": unsupported("fan_in_fan_out", True),
    "trainable tokens": unsupported("trainable_token_indices", [3, 4]),
    "a field of tomorrow": unsupported("use_new_thing", True),
    "another method": unsupported("peft_type", "IA3"),
    "an unknown tensor": Case(
        weights=unknown_tensor, verdict=FaultCode.EXPORT_ADAPTER_UNSUPPORTED, names="lora_C"
    ),
    # Refused as damaged.
    "a text for false": malformed("use_dora", "false"),
    "alpha beyond all floats": malformed("lora_alpha", 10**400),
    "a list for a map": malformed("alpha_pattern", ["q_proj"]),
    "a bad expression": malformed("alpha_pattern", {"(q_proj": 3}),
    "another rank": malformed("r", 4),
    "a truth for a rank": malformed("r", True),
    "changed twice": Case(
        weights=changed_twice, verdict=FaultCode.MODEL_WEIGHTS_INVALID, names="up_proj"
    ),
    "not finite": Case(weights=not_finite, verdict=FaultCode.MODEL_WEIGHTS_INVALID),
    "one factor less": Case(
        weights=one_factor_less, verdict=FaultCode.MODEL_WEIGHTS_INVALID, names="up_proj"
    ),
    "untrained": Case(weights=untrained, verdict=FaultCode.EXPORT_ADAPTER_UNTRAINED),
    "without a place": Case(
        weights=without_a_place, verdict=FaultCode.EXPORT_TENSOR_UNMAPPED, names="layers.9"
    ),
    "of another shape": Case(
        weights=of_another_shape, verdict=FaultCode.EXPORT_WRONG_BASE, names="up_proj"
    ),
    "resized vocabulary": Case(
        weights=resized_embedding, verdict=FaultCode.EXPORT_VOCABULARY_MISMATCH, names="resized"
    ),
    "exchanged ids": Case(files=exchanged_ids, verdict=FaultCode.EXPORT_VOCABULARY_MISMATCH),
    # Refused by the proof.
    "alpha of nothing": Case(config={"lora_alpha": 0}, verdict=FaultCode.EXPORT_NOOP_MERGE),
    "another template": Case(files=another_template, verdict=FaultCode.EXPORT_TEMPLATE_MISMATCH),
    "noisy base, F16": other_base("noisy", "F16"),
    "noisy base, Q4_K_M": other_base("noisy", "Q4_K_M"),
    "noisy base, Q2_K": other_base("noisy", "Q2_K"),
    "other base, Q8_0": other_base("other", "Q8_0"),
    "another factor": mismatched(config={"lora_alpha": 13}),
    "another factor, Q2_K": mismatched("Q2_K", config={"lora_alpha": 13}),
    "scaling left out": mismatched(lora={"use_rslora": True}, config={"use_rslora": False}),
    "alpha by pattern left out": mismatched(
        lora={"alpha_pattern": {"up_proj": 64}}, config={"alpha_pattern": {}}
    ),
    "layers exchanged": mismatched(weights=exchanged_layers),
    "projections exchanged": mismatched(weights=exchanged_projections),
    "a layer lost": mismatched(weights=lost_layer),
}


def make_bases(folder: Path) -> dict[str, Path]:
    """The demo's base, the same with noise of 0.3 deviations, and one that does something else."""
    weights = load_file(ANVIL / "model.safetensors")
    rng = np.random.default_rng(0)
    made = {"anvil": ANVIL}
    for kind in ("noisy", "other"):
        made[kind] = shutil.copytree(ANVIL, folder / kind)
        changed = dict(weights)
        for name, tensor in weights.items():
            if kind == "noisy" and tensor.ndim > 1:
                noise = torch.from_numpy(rng.standard_normal(tensor.shape, np.float32))
                changed[name] = (tensor + 0.3 * tensor.float().std() * noise).to(tensor.dtype)
            elif kind == "other" and "down_proj" in name:
                changed[name] = tensor.flip(0).contiguous()
        save_file(changed, made[kind] / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bases(tmp_path_factory.mktemp("bases"))


def test_the_table_has_more_than_forty_cases() -> None:
    exported = [name for name, case in CASES.items() if case.verdict is None]
    assert len(CASES) >= 60
    assert len(exported) >= 20


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_has_its_verdict(
    name: str,
    bases: dict[str, Path],
    engine: Engine,
    adapter_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    case = CASES[name]
    adapter = shutil.copytree(
        adapter_of(b_std=0.3, saved_std=0.1, **case.lora), tmp_path / "adapter"
    )
    change(adapter, case)

    def exported() -> Exported:
        return export_bundle(
            engine, adapter, tmp_path, case.mix, checkpoint=bases[case.base],
            key=f"verdicts-{case.base}",
        )  # fmt: skip

    if case.verdict is not None:
        with pytest.raises(Fault) as caught:
            exported()
        assert caught.value.code is case.verdict, caught.value.message
        assert case.names in caught.value.message
        assert not (tmp_path / "bundle.zip").exists()
        return
    assert exported().proof.proven
    path = model_in(tmp_path / "bundle.zip", tmp_path)
    assert ("output.weight" in matrices_of(path)) is case.is_untied
    wanted = logits_of_peft(adapter)
    with LlamaModel(path, thread_count=1) as model:
        found = np.stack([row for _, row in model.logits(TOKENS, range(len(TOKENS)))])
    assert float(np.sqrt(np.square(found - wanted).mean())) <= LOGIT_BOUND * wanted.std()


def change(adapter: Path, case: Case) -> None:
    """Does to an adapter what the case says, after its reference was written."""
    if case.config:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **case.config}))
    if case.weights is not None:
        weights = load_file(adapter / "adapter_model.safetensors")
        case.weights(weights)
        whole = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(whole, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    if case.files is not None:
        case.files(adapter)


@torch.inference_mode()
def logits_of_peft(adapter: Path) -> NDArray[np.float32]:
    base = AutoModelForCausalLM.from_pretrained(ANVIL, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter).eval()
    wanted: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return wanted
