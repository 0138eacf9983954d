"""Proof that MLX computes the model that the files mean, before anything is trained on it.

mlx-lm has model code of its own. Where a config says something that this code does not know, it
computes another model without a word: other positions, no sliding window. An adapter trained on
that fits no other program, so that a run begins with both saying what comes after the same tokens.

Shapes: T tokens, V vocabulary.
"""

import logging

import mlx.core as mx
import numpy as np
import torch

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision
from trainer.domain.plan import Base
from trainer.training.compute_precision import ComputePrecision
from trainer.training.memory import release_memory
from trainer.training.mlx_backend.base import dtype_for
from trainer.training.peft_library import load_base

log = logging.getLogger(__name__)

# Enough to see other positions or masks; on a processor it costs a moment.
PROBE_TOKENS_MAX = 128
# Mean divergence, in nats, that rounding to bf16 in other places may cause. Other rotary positions
# were seen to give 0.1 and more.
DIVERGENCE_MAX = 0.02


def reference_logprobs(base: Base, ids: np.ndarray, precision: Precision) -> np.ndarray:
    """What transformers expects after each of the first tokens, (T, V) in natural logarithms.

    As many tokens are taken as show a sliding window at work, if the model has one.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID.
    """
    weights = torch.float32 if dtype_for(precision) == mx.float32 else torch.bfloat16
    compute_precision = ComputePrecision(device=torch.device("cpu"), weights=weights, autocast=None)
    model = load_base(base, compute_precision)
    model.set_attn_implementation("sdpa")
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    count = len(ids) if window and window < len(ids) else PROBE_TOKENS_MAX
    ids_1T = torch.from_numpy(ids[:count].astype(np.int64))[None]
    with torch.no_grad():
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    logprobs_TV: np.ndarray = logits_TV.log_softmax(-1).numpy()
    del model
    release_memory()
    return logprobs_TV


def require_faithful(model: object, base: Base, ids: np.ndarray, reference_TV: np.ndarray) -> float:
    """Divergence of MLX's model from the reference, in nats a token.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED when it is too large to be rounding.
    """
    assert callable(model)
    logits_TV = model(mx.array(ids[: len(reference_TV)].astype(np.int32))[None])[0]
    logits_TV = logits_TV.astype(mx.float32)
    logprobs_TV = np.array(logits_TV - mx.logsumexp(logits_TV, axis=-1, keepdims=True))
    if logprobs_TV.shape == reference_TV.shape:
        summed_T = (np.exp(reference_TV) * (reference_TV - logprobs_TV)).sum(-1)
        divergence = float(summed_T.mean())
    else:
        divergence = float("inf")
    log.info("MLX differs from transformers by %.2g nats a token", divergence)
    if not divergence <= DIVERGENCE_MAX:
        raise Fault(
            FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED,
            f"mlx-lm computes {base.model_id} differently from transformers, by {divergence:.2g} "
            "nats a token; use another backend",
            model=base.model_id,
            divergence=f"{divergence:.4g}",
        )
    return divergence
