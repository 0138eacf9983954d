"""An adapter for Ollama: the same numbers as llama.cpp's own converter gives, and the same answers.

Ollama runs adapters in llama.cpp, so what loads there and speaks as the merged model loads in it.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.local import llama_build
from tests.integration.exporter.making import ANVIL, make_adapter
from tests.support.ollama_server import Ollama, an_ollama
from tunesmith.errors import InputError
from tunesmith.ollama.register import register_adapter
from tunesmith.ollama.server import Server

pytestmark = [pytest.mark.integration]
BASE_FACTS = {
    "general.architecture": "llama",
    "llama.embedding_length": 256,
    "llama.block_count": 4,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with an_ollama(Ollama(facts={"anvil": BASE_FACTS})) as serving:
        yield serving


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for name in FILES:
            archive.write(folder / name, name)
    return target


def registered(ollama: Ollama, folder: Path, tmp_path: Path) -> Path:
    """The adapter as the server has it."""
    archive = zipped(folder, tmp_path / "lora.zip")
    register_adapter(archive, "tuned", "anvil", Server(ollama.url))
    request = ollama.models["tuned"]
    assert request["from"] == "anvil"
    assert list(request["adapters"]) == ["adapter.gguf"]
    path = tmp_path / "ours.gguf"
    path.write_bytes(ollama.blobs[request["adapters"]["adapter.gguf"]])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lora.zip", "ours.gguf"]
    return path


def deltas(path: Path) -> dict[str, np.ndarray]:
    """Scale times B times A of each matrix, with the scale that llama.cpp computes."""
    reader = read_gguf(path)
    alpha_field = reader.get_field("adapter.lora.alpha")
    assert alpha_field is not None
    alpha = float(alpha_field.contents())
    parts = {
        tensor.name: tensor.data.reshape(tuple(reversed(tensor.shape))).astype(np.float64)
        for tensor in reader.tensors
    }
    found = {}
    for name, a in parts.items():
        if name.endswith(".lora_a"):
            b = parts[name.removesuffix("a") + "b"]
            scale = alpha / b.shape[1] if alpha else 1.0
            found[name.removesuffix(".lora_a")] = scale * (b @ a)
    return found


def read_gguf(path: Path) -> Any:
    """A file as the gguf package reads it.

    It is loaded when it is needed: llama.cpp's own newer one, of the same name, must not find this
    one loaded already where tests run its converter in their process.
    """
    from gguf import GGUFReader

    return GGUFReader(path)


def converted_by_llama(adapter: Path, target: Path) -> Path:
    tool = llama_build.vendor_folder() / "convert_lora_to_gguf.py"
    words = [str(adapter), "--base", str(ANVIL), "--outfile", str(target), "--outtype", "f32"]
    path = f"import sys; sys.path.insert(0, {str(tool.parent / 'gguf-py')!r}); "
    code = path + f"import runpy; sys.argv = ['x', *{words!r}]; runpy.run_path({str(tool)!r}, "
    subprocess.run(
        [sys.executable, "-c", code + "run_name='__main__')"],
        check=True,
        capture_output=True,
        timeout=120,
        cwd=tool.parent,
    )
    return target


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_is_llama_cpps_own(ollama: Ollama, tmp_path: Path, dtype: str) -> None:
    """001-36: names, order of rotary rows and numbers, bit by bit."""
    import torch

    adapter = tmp_path.parent / f"{tmp_path.name}-adapter"
    make_adapter(ANVIL, adapter, dtype=getattr(torch, dtype))
    theirs = read_gguf(converted_by_llama(adapter, tmp_path.parent / f"{tmp_path.name}.gguf"))
    ours = read_gguf(registered(ollama, adapter, tmp_path))
    mine = {tensor.name: tensor for tensor in ours.tensors}
    assert set(mine) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        assert np.array_equal(mine[tensor.name].data, tensor.data), tensor.name
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        ours_field, theirs_field = ours.get_field(key), theirs.get_field(key)
        assert ours_field is not None
        assert theirs_field is not None
        assert ours_field.contents() == theirs_field.contents()


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"rank_pattern": {"q_proj": 4}, "use_rslora": True},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 64}},
    ],
    ids=["rslora", "ranks", "ranks and rslora", "alphas"],
)
def test_every_scale_is_kept(ollama: Ollama, tmp_path: Path, lora: dict[str, Any]) -> None:
    """001-36: also scales that one alpha cannot say, which Ollama's own conversion would lose."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = tmp_path.parent / f"{tmp_path.name}-adapter"
    make_adapter(ANVIL, adapter, **lora)
    found = deltas(registered(ollama, adapter, tmp_path))
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ANVIL), adapter)
    layer = model.base_model.model.model.layers[1]
    for name, module in (
        ("blk.1.ffn_down.weight", layer.mlp.down_proj),
        ("blk.1.attn_v.weight", layer.self_attn.v_proj),
    ):
        wanted = module.get_delta_weight("default").detach().double().numpy()
        assert np.allclose(found[name], wanted, rtol=1e-5, atol=1e-7), name
    q = layer.self_attn.q_proj.get_delta_weight("default").detach().double().numpy()
    assert np.allclose(np.linalg.norm(found["blk.1.attn_q.weight"]), np.linalg.norm(q))


@pytest.mark.slow
def test_base_and_adapter_speak_as_the_merged_model(
    ollama: Ollama, tmp_path: Path, adapter_of: Callable[..., Path], engine: Any
) -> None:
    """001-36, 001-37: next-token choices of base + adapter in llama.cpp against the reference."""
    import ctypes

    import llama_cpp
    from safetensors.numpy import load_file

    from exporter.engine.base import prepare_base

    adapter = adapter_of(b_std=0.3)
    ours = registered(ollama, adapter, tmp_path)
    base = prepare_base(ANVIL, engine.cache, "anvil-adapter-test", vendor=engine.vendor)
    model = llama_cpp.llama_model_load_from_file(
        str(base.gguf).encode(), llama_cpp.llama_model_default_params()
    )
    lora = llama_cpp.llama_adapter_lora_init(model, str(ours).encode())
    assert lora, "llama.cpp takes the adapter"
    context = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora)
    scales = (ctypes.c_float * 1)(1.0)
    assert llama_cpp.llama_set_adapters_lora(context, adapters, 1, scales) == 0
    reference = load_file(adapter / "proof_reference.safetensors")
    count = int(reference["segment_offsets"][1])
    agreed = 0
    for place in range(count - 1):
        token = (ctypes.c_int32 * 1)(int(reference["token_ids"][place]))
        one = llama_cpp.llama_batch_get_one(token, 1)
        assert llama_cpp.llama_decode(context, one) == 0
        logits = llama_cpp.llama_get_logits(context)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        best = int(np.argmax(np.ctypeslib.as_array(logits, shape=(vocabulary,))))
        agreed += best == int(reference["adapter_topk_ids"][place][0])
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    assert agreed >= 0.95 * (count - 1)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    ],
)
def test_what_a_gguf_adapter_cannot_say_is_refused(
    ollama: Ollama, tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    adapter = tmp_path.parent / f"{tmp_path.name}-adapter"
    make_adapter(ANVIL, adapter, **lora)
    with pytest.raises(InputError, match=said) as caught:
        registered(ollama, adapter, tmp_path)
    assert caught.value.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert not ollama.models


@pytest.mark.parametrize(
    "change",
    [
        {"llama.embedding_length": 512},
        {"llama.block_count": 2},
        {"general.architecture": "mamba"},
        {"llama.attention.head_count": 3},
        {"llama.attention.head_count": None},
    ],
)
def test_another_base_is_refused(
    ollama: Ollama, tmp_path: Path, adapter_of: Callable[..., Path], change: dict[str, Any]
) -> None:
    ollama.facts["anvil"] = {**BASE_FACTS, **change}
    with pytest.raises(InputError):
        registered(ollama, adapter_of(b_std=0.3), tmp_path)
    assert not ollama.models


def test_a_base_that_is_not_there_is_pulled(
    ollama: Ollama, tmp_path: Path, adapter_of: Callable[..., Path]
) -> None:
    ollama.facts.clear()
    ollama.library["anvil"] = BASE_FACTS
    registered(ollama, adapter_of(b_std=0.3), tmp_path)
    assert ollama.count("POST", "/api/pull") == 1


def test_damaged_weights_are_refused(
    ollama: Ollama, tmp_path: Path, adapter_of: Callable[..., Path]
) -> None:
    source = adapter_of(b_std=0.3)
    good = (source / FILES[1]).read_bytes()
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    name = next(name for name in header if name != "__metadata__")
    stretched = {**header, name: {**header[name], "data_offsets": [0, 1 << 40]}}
    encoded = json.dumps(stretched).encode()
    bad = [
        b"",
        good[:4],
        good[: len(good) // 2],
        (1 << 62).to_bytes(8, "little") + good[8:],
        len(encoded).to_bytes(8, "little") + encoded,
        good[:8] + b"[" * 1000 + good[1008:],
    ]
    for number, content in enumerate(bad):
        folder = tmp_path.parent / f"{tmp_path.name}-{number}"
        folder.mkdir()
        (folder / FILES[0]).write_bytes((source / FILES[0]).read_bytes())
        (folder / FILES[1]).write_bytes(content)
        archive = zipped(folder, tmp_path / "bad.zip")
        with pytest.raises(InputError):
            register_adapter(archive, "tuned", "anvil", Server(ollama.url))
    assert not ollama.models
