"""Rows of the codes about a run under way: its states, its training, its export."""

from collections.abc import Mapping
from functools import partial

from lexicon.codes import FaultCode
from lexicon.rows import Category, FaultRow, Owner, Retry

_training = partial(
    FaultRow,
    category=Category.TRAINING,
    owner=Owner.PLATFORM,
    retry=Retry.NEVER,
    refundable=True,
    grpc_status="FAILED_PRECONDITION",
)
_export = partial(
    FaultRow,
    category=Category.EXPORT,
    owner=Owner.PLATFORM,
    retry=Retry.NEVER,
    refundable=True,
    grpc_status="FAILED_PRECONDITION",
    remedy="The adapter is stored and stays; export it again from the hub later.",
)
_life = partial(
    FaultRow,
    category=Category.SUBMISSION_REJECTED,
    owner=Owner.USER,
    retry=Retry.NEVER,
    refundable=False,
    grpc_status="FAILED_PRECONDITION",
)

ROWS: Mapping[FaultCode, FaultRow] = {
    FaultCode.EXPORT_ADAPTER_MISSING: _export(
        grpc_status="NOT_FOUND",
        meaning="There is no adapter to export; no conversion was started.",
        remedy="Choose a run whose adapter is stored.",
    ),
    FaultCode.EXPORT_ADAPTER_UNSUPPORTED: _export(
        owner=Owner.USER,
        meaning="The adapter has a setting or a kind of tensor that the merge does not support.",
        remedy="The adapter is stored and stays, and works with PEFT. Train again without the "
        "setting that is named, or save the adapter as plain LoRA, and export that.",
        variants={
            "residual": "The adapter belongs to a base that its initialization has changed. Save "
            "it again as plain LoRA: PEFT's `save_pretrained` with "
            "`path_initial_model_for_weight_conversion`, where it has one for `{value}`. Otherwise "
            "train again with `init_lora_weights` true.",
        },
    ),
    FaultCode.EXPORT_ADAPTER_UNTRAINED: _export(
        meaning="The adapter holds initial weights; it was never trained.",
        remedy="Train first; an adapter that equals its initial weights is not exported.",
        symptoms=(
            "`Trainer.save() called before train() — writing init-weight LoRA adapter to <path>`",
        ),
    ),
    FaultCode.EXPORT_DISK_FULL: _export(
        retry=Retry.SAME,
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The exporter's disk is full.",
        remedy="Free space on the exporter's work folder; the adapter is stored and the export "
        "can be repeated.",
    ),
    FaultCode.EXPORT_EXISTS: _life(
        grpc_status="ALREADY_EXISTS",
        meaning="The hub entry has a GGUF of this type already.",
        remedy="Download it with `tunesmith pull`, or request it again with `--replace`.",
    ),
    FaultCode.EXPORT_MERGE_MISMATCH: _export(
        meaning="The merged model does not behave as the adapter did in training, before any "
        "quantisation.",
        remedy="The adapter is stored and stays: load it with PEFT on its base. Send "
        "`tunesmith run report RUN`, so that the merge of this kind of adapter can be fixed.",
    ),
    FaultCode.EXPORT_NOOP_MERGE: _export(
        meaning="The merged model equals the base: the adapter changed nothing.",
        remedy="The adapter is stored and stays, but exporting it again gives the same. Submit a "
        "run that learns more: a higher learning rate, more steps, or a higher alpha.",
    ),
    FaultCode.EXPORT_NOT_FOUND: _life(
        grpc_status="NOT_FOUND",
        meaning="There is no export of this name.",
        remedy="Look at `tunesmith artifact exports`.",
    ),
    FaultCode.EXPORT_QUANTIZATION_BROKEN: _export(
        meaning="The quantised model differs too much from the trained one.",
        remedy="The adapter is stored and stays; export it again in a type of more bits: "
        "`tunesmith artifact export RUN -q Q8_0`. Operators: when that fails too, the exporter's "
        "processor, memory or disk is at fault.",
    ),
    FaultCode.EXPORT_TEMPLATE_MISMATCH: _export(
        meaning="The chat template in the GGUF is not the one that was trained with.",
        remedy="The adapter is stored and stays, and works with the tokenizer stored beside it. "
        "The exporter has checked its own files of the base: submit the run again for a GGUF.",
    ),
    FaultCode.EXPORT_TENSOR_UNMAPPED: _export(
        meaning="A tensor of the model has no place in GGUF.",
    ),
    FaultCode.EXPORT_VERIFY_MISMATCH: _export(
        meaning="Tensors that are read back from the file differ from the computed ones.",
    ),
    FaultCode.EXPORT_VOCABULARY_MISMATCH: _export(
        meaning="The tokens that the adapter was trained with do not fit into a GGUF of its base.",
        remedy="The adapter is stored and stays, and works with the tokenizer stored beside it. "
        "For a GGUF train again with the base's own tokenizer, or with new tokens only in spare "
        "rows of the base's embeddings, added as special tokens; the message names the tokens.",
    ),
    FaultCode.EXPORT_WRONG_BASE: _export(
        meaning="The adapter was trained from another base model than the one at hand.",
        remedy="The adapter is stored and stays. The exporter has compared its own files of the "
        "base with their digests, so that those of the training were others: submit the run again.",
    ),
    FaultCode.NODE_NOT_REGISTERED: _life(
        category=Category.INTERNAL,
        owner=Owner.PLATFORM,
        retry=Retry.SAME,
        meaning="The scheduler does not know this node, or knows a newer process of it.",
        remedy="No action is needed: the worker registers itself again.",
    ),
    FaultCode.RUNTIME_ADAPTER_UNCHANGED: _training(
        meaning="Training ended, but the adapter equals its initial weights.",
        remedy="Raise the learning rate or the number of steps; report it when it happens with "
        "defaults.",
        symptoms=("The loss is flat from the second run on.",),
    ),
    FaultCode.RUNTIME_AUTH_NOT_ENFORCED: _training(
        category=Category.INTERNAL,
        refundable=False,
        meaning="A service would listen beyond this machine without TLS and authentication.",
        remedy="Bind it to 127.0.0.1 and use SSH port forwarding, or set TUNESMITH_TLS_CERT, "
        "TUNESMITH_TLS_KEY and TUNESMITH_TLS_CA. It cannot be switched off.",
        symptoms=("A process refuses to start with `--host 0.0.0.0`.",),
    ),
    FaultCode.RUNTIME_GGUF_EXPORT_FAILED: _export(
        retry=Retry.SAME,
        meaning="The GGUF export failed.",
        remedy="The adapter is stored and stays; export it again from the hub later. For a build "
        "error of llama-cpp-python install the tools: Linux build-essential and cmake, "
        "Windows VS Build Tools (C++) and CMake.",
        symptoms=("A pip build error of llama-cpp-python at the first GGUF export",),
    ),
    FaultCode.RUNTIME_GPU_OOM: _training(
        category=Category.OUT_OF_MEMORY,
        retry=Retry.SMALLER,
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The accelerator's memory ran out, and a smaller micro-batch did not help.",
        remedy="Retry first: a transient blip on the node can cause a one-off OOM. Then lower "
        "`--batch-size` (1), lower `--max-seq-length` (attention takes most VRAM), or take a "
        "smaller model (Qwen 2.5 3B fits about 8 GB).",
        symptoms=(
            "`torch.cuda.OutOfMemoryError: CUDA out of memory.`",
            "`Tried to allocate …`",
        ),
        variants={
            "repeated": "The same configuration ran out of memory several times. This looks like "
            "a temporary fault of the platform, usually solved within a few hours; its operators "
            "have been notified. Wait and retry.",
            "not_vouched": "The platform did not vouch for this model: take a verified catalog "
            "model of similar size and family, or move up to A10G (which needs a paid plan).",
        },
    ),
    FaultCode.RUNTIME_GPU_TEMPERATURE_CRITICAL: _training(
        retry=Retry.SAME,
        grpc_status="UNAVAILABLE",
        meaning="Waiting for GPU to cool…",
        remedy="Check the airflow; use a smaller batch or more accumulation; raise the threshold "
        "if the temperature is intended. Training resumes by itself when it is safe.",
        symptoms=("`Waiting for GPU to cool…`",),
    ),
    FaultCode.RUNTIME_LOSS_NOT_FINITE: _training(
        owner=Owner.USER,
        meaning="The loss or the gradient became infinite or not a number.",
        remedy="Lower the learning rate, add warm-up, and look for broken rows in the dataset.",
        symptoms=("The loss shows `nan` or `inf`.",),
    ),
    FaultCode.RUNTIME_MERGE_REFUSED: _training(
        owner=Owner.USER,
        meaning="A run of a multi-run was not merged: a weight was infinite or not a number, or a "
        "gate refused it. The adapter merged before stays, and the next run begins from it; "
        "training fails only when no run was merged.",
        remedy="Lower the learning rate, or loosen the gate that the message names "
        "(`drift_minimum_cosine`, `eval_maximum_regression`).",
        symptoms=("`Run 3 of 5 was not merged: …`",),
    ),
    FaultCode.RUNTIME_PROCESS_STUCK: _training(
        category=Category.GPU_NODE_LOST,
        retry=Retry.SAME,
        grpc_status="UNAVAILABLE",
        meaning="A training process of the node cannot be ended and may still hold the device; the "
        "node takes no run until it has ended.",
        remedy="The run is tried again on another node. Operators: look for a process in state D "
        "and for the driver's messages (`dmesg`); often only a restart of the machine helps.",
        symptoms=("`tunesmith node list` shows a node as draining for long.",),
    ),
    FaultCode.RUNTIME_SAMPLES_FAILED: _training(
        meaning="The model could not be asked for its samples; a warning.",
        remedy="Training and adapter are not affected. Ask the adapter yourself before you rely on "
        "it; if samples fail in every run, contact support with the run's id.",
    ),
    FaultCode.RUNTIME_STEPS_SKIPPED: _training(
        meaning="Some steps in fp16 were skipped because their gradient overflowed; a warning.",
        remedy="A few at the beginning are how loss scaling finds its factor. When there are many, "
        "take bf16 or a smaller learning rate.",
    ),
    FaultCode.RUNTIME_TRAINING_FAILED: _training(
        meaning="Training failed in a computation.",
        remedy="Verify that the model's checkpoint is complete and uncorrupted; then retry.",
        symptoms=("`RuntimeError` from PyTorch",),
        variants={
            "value_error": "Check that the model is CausalLM and that the parameters are in range.",
            "cuda_oom": "Reduce `batch_size` or use a smaller model.",
        },
    ),
    FaultCode.RUNTIME_UNSLOTH_FAILED: _training(
        category=Category.DEPENDENCY,
        meaning="Unsloth could not load the model, and falling back was switched off.",
        remedy="Allow the fallback to transformers + PEFT (about half as fast), or pin an Unsloth "
        "that is known to be good.",
        symptoms=(
            (
                "`Unsloth load failed (…); falling back to transformers + PEFT. Set "
                "Trainer(unsloth_fallback=False) to disable.`"
            ),
        ),
    ),
    FaultCode.RUNTIME_WORKER_LOST: _training(
        category=Category.GPU_NODE_LOST,
        retry=Retry.SAME,
        grpc_status="UNAVAILABLE",
        meaning="The node that held the run was lost, also in every retry.",
        remedy="Submit the run again; the platform's operators see lost nodes.",
        symptoms=("`Connection to GPU node lost`", "`Retrying after transient failure`"),
    ),
    FaultCode.RUN_CANCELLED: _life(
        grpc_status="CANCELLED",
        meaning="The run was cancelled.",
        remedy="Submit it again when it is wanted after all; a cancelled run cannot be revived.",
    ),
    FaultCode.RUN_LEASE_LOST: _life(
        category=Category.GPU_NODE_LOST,
        owner=Owner.PLATFORM,
        grpc_status="ABORTED",
        meaning="Another attempt has taken over; what this one still writes does not count.",
        remedy="The worker drops the task and asks for another; nothing has to be done.",
    ),
    FaultCode.RUN_NOT_FOUND: _life(
        grpc_status="NOT_FOUND",
        meaning="There is no run of this name in the project.",
        remedy="Look at `tunesmith run list`.",
    ),
    FaultCode.RUN_TIMEOUT: _life(
        category=Category.LIMIT,
        refundable=True,
        grpc_status="DEADLINE_EXCEEDED",
        meaning="The run reached its deadline before there was anything to keep.",
        remedy="Raise the timeout to the expected time and 30 % more, or take fewer steps.",
    ),
    FaultCode.RUN_TRANSITION_ILLEGAL: _life(
        meaning="The state of the run does not allow this.",
        remedy="Look at the run's state; a run that has ended does not change any more.",
    ),
    FaultCode.STATE_CHECKPOINT_INVALID: _training(
        retry=Retry.SAME,
        meaning="A checkpoint could not be written or is not whole.",
        remedy="Free space, remove `.partial` files (always safe), and resume from the previous "
        "good checkpoint.",
        symptoms=("`OSError: [Errno 28] No space left on device` while saving",),
    ),
}
