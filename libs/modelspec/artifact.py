"""Sizes of a run's artifacts, estimated before it starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lexicon.faults import Fault, FaultCode
from lexicon.names import quoted
from modelspec.lora import LoraSpec, adapter_bytes
from modelspec.shape import ModelShape

DEFAULT_QUANTIZATION = "Q4_K_M"
# Card, template, Modelfile, scripts, proof.
SMALL_FILES_BYTES = 256 << 10
# Vocabulary text, scores and types inside a GGUF.
GGUF_BYTES_PER_VOCABULARY_ENTRY = 32
GGUF_HEADER_BYTES = 1 << 20
# A K-quant packs 256 numbers of a row; other rows fall back to blocks of 32, and else to F16.
SUPER_BLOCK = 256
BLOCK = 32
ADAPTER_BYTES_PER_PARAM = 4
NORM_BITS = 32
# The output matrix falls back from Q6_K to Q8_0.
COARSE_HEAD_BITS = 8.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Bits per weight of a quantisation mix.

    Attributes:
        layer_bits: mean over the matrices of the layers, the raised ones included.
        output_bits: of the matrix that makes logits.
        embedding_bits: of the token embeddings when they are a matrix of their own.
        fallback_bits: of rows that are a multiple of 32 only.
    """

    layer_bits: float
    output_bits: float
    embedding_bits: float
    fallback_bits: float


# Block sizes of ggml: Q2_K 2.625, Q3_K 3.4375, Q4_K 4.5, Q5_K 5.5, Q6_K 6.5625, Q4_0 4.5, Q5_0 5.5,
# Q8_0 8.5 bits. The _M mixes raise part of the value and down projections.
MIXES: Mapping[str, Mix] = {
    "BF16": Mix(layer_bits=16, output_bits=16, embedding_bits=16, fallback_bits=16),
    "F16": Mix(layer_bits=16, output_bits=16, embedding_bits=16, fallback_bits=16),
    "Q2_K": Mix(layer_bits=3.0, output_bits=6.5625, embedding_bits=2.625, fallback_bits=4.5),
    "Q3_K_M": Mix(layer_bits=3.9, output_bits=6.5625, embedding_bits=3.4375, fallback_bits=5.5),
    "Q4_0": Mix(layer_bits=4.5, output_bits=6.5625, embedding_bits=4.5, fallback_bits=5.5),
    "Q4_K_M": Mix(layer_bits=4.9, output_bits=6.5625, embedding_bits=4.5, fallback_bits=6.5),
    "Q5_K_M": Mix(layer_bits=5.7, output_bits=6.5625, embedding_bits=5.5, fallback_bits=8.5),
    "Q6_K": Mix(layer_bits=6.5625, output_bits=6.5625, embedding_bits=6.5625, fallback_bits=8.5),
    "Q8_0": Mix(layer_bits=8.5, output_bits=8.5, embedding_bits=8.5, fallback_bits=8.5),
}
QUANTIZATIONS = tuple(MIXES)


def check_quantization(name: str) -> str:
    """The name itself if it is a known quantisation.

    Raises:
        Fault: CONFIG_QUANTIZATION_UNKNOWN.
    """
    if name not in MIXES:
        raise Fault(
            FaultCode.CONFIG_QUANTIZATION_UNKNOWN,
            f"Unknown quantization {quoted(name)}; known are {', '.join(QUANTIZATIONS)}",
            quantization=name[:40],
        )
    return name


def lora_zip_bytes(lora: LoraSpec, shape: ModelShape, *, tokenizer_bytes: int) -> int:
    """Size of the adapter's ZIP: float32 matrices hardly compress.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    """
    adapter = adapter_bytes(lora, shape, bytes_per_param=ADAPTER_BYTES_PER_PARAM)
    return adapter + tokenizer_bytes + SMALL_FILES_BYTES


def gguf_bytes(shape: ModelShape, quantization: str) -> int:
    """Size of the GGUF of the merged model, in bytes.

    Raises:
        Fault: CONFIG_QUANTIZATION_UNKNOWN.
    """
    mix = MIXES[check_quantization(quantization)]
    vocabulary = shape.vocabulary_size * shape.hidden_size
    # Tied embeddings are stored once, in the finer type of the output.
    head_bits = mix.output_bits if shape.tied_embeddings else mix.output_bits + mix.embedding_bits
    if shape.hidden_size % SUPER_BLOCK:
        head_bits = max(COARSE_HEAD_BITS, mix.output_bits) * (1 if shape.tied_embeddings else 2)
    head = vocabulary * head_bits
    layers = _layer_bits(shape, mix)
    extra = shape.vocabulary_size * GGUF_BYTES_PER_VOCABULARY_ENTRY + GGUF_HEADER_BYTES
    return int((head + layers) / 8) + extra


def gguf_bytes_by_count(parameter_count: int, quantization: str) -> int:
    """The same where the shape is not known: parameters times the mean bits of the layers.

    Raises:
        Fault: CONFIG_QUANTIZATION_UNKNOWN.
    """
    mix = MIXES[check_quantization(quantization)]
    return int(parameter_count * mix.layer_bits / 8)


def artifact_bytes(
    lora: LoraSpec,
    shape: ModelShape,
    *,
    quantizations: Sequence[str],
    tokenizer_bytes: int,
    merge_count: int = 0,
) -> int:
    """Size of everything a run stores: the adapter and one GGUF for each quantisation.

    Args:
        merge_count: adapters in the merge history of a multi-run.
    Raises:
        Fault: CONFIG_TARGET_UNKNOWN, CONFIG_QUANTIZATION_UNKNOWN.
    """
    bundles = sum(gguf_bytes(shape, name) + SMALL_FILES_BYTES for name in quantizations)
    merges = merge_count * adapter_bytes(lora, shape, bytes_per_param=ADAPTER_BYTES_PER_PARAM)
    return lora_zip_bytes(lora, shape, tokenizer_bytes=tokenizer_bytes) + bundles + merges


def coarse_rows(shape: ModelShape) -> tuple[str, ...]:
    """Modules whose rows are no multiple of 256, so that K-quants fall back to a larger type."""
    return tuple(
        name for name, module in shape.linear_modules().items() if module.in_features % SUPER_BLOCK
    )


def _layer_bits(shape: ModelShape, mix: Mix) -> float:
    norms = shape.layer_count * shape.architecture.layer_norms * shape.hidden_size * NORM_BITS
    matrices = sum(
        module.in_features * module.out_features * module.count * _row_bits(module.in_features, mix)
        for module in shape.linear_modules().values()
    )
    if shape.expert_count > 1:
        experts = shape.layer_count * shape.expert_count * 3
        width = shape.hidden_size * shape.feed_forward_size
        matrices += experts * width * _row_bits(shape.hidden_size, mix)
    return norms + matrices


def _row_bits(row: int, mix: Mix) -> float:
    if row % SUPER_BLOCK == 0:
        return mix.layer_bits
    return mix.fallback_bits if row % BLOCK == 0 else 16
