"""Dimensions of models as their makers published them, and a builder for shapes."""

from typing import Any

from modelspec.shape import ModelShape


def config(architecture: str = "LlamaForCausalLM", **changes: Any) -> dict[str, Any]:
    """A config.json; what is not named is a small Llama."""
    return {
        "architectures": [architecture],
        "vocab_size": 1024,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    } | changes


def shape(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelShape:
    """The shape of such a config."""
    return ModelShape.from_config(config(architecture, **changes))


def _sized(
    architecture: str,
    *,
    vocabulary: int,
    hidden: int,
    layers: int,
    heads: tuple[int, int],
    forward: int,
    tied: bool,
    **others: Any,
) -> dict[str, Any]:
    return config(
        architecture,
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        intermediate_size=forward,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        **others,
    )


PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _sized(
        "LlamaForCausalLM",
        vocabulary=49152, hidden=576, layers=30, heads=(9, 3), forward=1536, tied=True,
    ),
    "HuggingFaceTB/SmolLM3-3B": _sized(
        "SmolLM3ForCausalLM",
        vocabulary=128256, hidden=2048, layers=36, heads=(16, 4), forward=11008, tied=True,
    ),
    "Qwen/Qwen2.5-0.5B": _sized(
        "Qwen2ForCausalLM",
        vocabulary=151936, hidden=896, layers=24, heads=(14, 2), forward=4864, tied=True,
    ),
    "Qwen/Qwen2.5-7B-Instruct": _sized(
        "Qwen2ForCausalLM",
        vocabulary=152064, hidden=3584, layers=28, heads=(28, 4), forward=18944, tied=False,
    ),
    "Qwen/Qwen3-0.6B": _sized(
        "Qwen3ForCausalLM",
        vocabulary=151936, hidden=1024, layers=28, heads=(16, 8), forward=3072, tied=True,
        head_dim=128,
    ),
    "Qwen/Qwen3-8B": _sized(
        "Qwen3ForCausalLM",
        vocabulary=151936, hidden=4096, layers=36, heads=(32, 8), forward=12288, tied=False,
        head_dim=128,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _sized(
        "LlamaForCausalLM",
        vocabulary=32000, hidden=2048, layers=22, heads=(32, 4), forward=5632, tied=False,
    ),
    "google/gemma-2-2b-it": _sized(
        "Gemma2ForCausalLM",
        vocabulary=256000, hidden=2304, layers=26, heads=(8, 4), forward=9216, tied=True,
        head_dim=256,
    ),
    "google/gemma-3-1b-it": _sized(
        "Gemma3ForCausalLM",
        vocabulary=262144, hidden=1152, layers=26, heads=(4, 1), forward=6912, tied=True,
        head_dim=256,
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _sized(
        "LlamaForCausalLM",
        vocabulary=128256, hidden=4096, layers=32, heads=(32, 8), forward=14336, tied=False,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": _sized(
        "LlamaForCausalLM",
        vocabulary=128256, hidden=2048, layers=16, heads=(32, 8), forward=8192, tied=True,
        head_dim=64,
    ),
    "microsoft/Phi-3.5-mini-instruct": _sized(
        "Phi3ForCausalLM",
        vocabulary=32064, hidden=3072, layers=32, heads=(32, 32), forward=8192, tied=False,
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _sized(
        "MistralForCausalLM",
        vocabulary=32768, hidden=4096, layers=32, heads=(32, 8), forward=14336, tied=False,
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": _sized(
        "MixtralForCausalLM",
        vocabulary=32000, hidden=4096, layers=32, heads=(32, 8), forward=14336, tied=False,
        num_local_experts=8, num_experts_per_tok=2,
    ),
}  # fmt: skip
