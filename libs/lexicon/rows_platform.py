"""Rows of the codes about money, quotas, storage and dependencies of the platform."""

from collections.abc import Mapping
from functools import partial

from lexicon.codes import FaultCode
from lexicon.rows import Category, FaultRow, Owner, Retry

_money = partial(
    FaultRow,
    category=Category.SUBMISSION_REJECTED,
    owner=Owner.USER,
    retry=Retry.NEVER,
    refundable=False,
    grpc_status="FAILED_PRECONDITION",
)
_storage = partial(
    FaultRow,
    category=Category.DEPENDENCY,
    owner=Owner.PLATFORM,
    retry=Retry.NEVER,
    refundable=True,
    grpc_status="FAILED_PRECONDITION",
)
_dependency = partial(
    FaultRow,
    category=Category.DEPENDENCY,
    owner=Owner.PLATFORM,
    retry=Retry.SAME,
    refundable=True,
    grpc_status="UNAVAILABLE",
)

ROWS: Mapping[FaultCode, FaultRow] = {
    FaultCode.ARTIFACT_NOT_FOUND: _money(
        grpc_status="NOT_FOUND",
        meaning="There is no artifact of this name in the project.",
        remedy="Look at `tunesmith run show`; cancelled and refused runs have no artifacts.",
    ),
    FaultCode.BILLING_ACCOUNT_NOT_FOUND: _money(
        grpc_status="NOT_FOUND",
        meaning="The project has no account.",
        remedy="Ask an operator to grant the project credits; that opens its account.",
    ),
    FaultCode.BILLING_AMOUNT_INVALID: _money(
        grpc_status="INVALID_ARGUMENT",
        meaning="The amount of credits is invalid.",
        remedy="Use a positive amount in whole micro-credits.",
    ),
    FaultCode.BILLING_FUNDS_INSUFFICIENT: _money(
        retry=Retry.SMALLER,
        meaning="The project's credits do not cover the highest price of the run.",
        remedy="Add credits, take fewer steps or a cheaper tier; `tunesmith billing quote` shows "
        "the price.",
    ),
    FaultCode.BILLING_HOLD_CLOSED: _money(
        meaning="The hold was captured or released before.",
        remedy="Look at the run's receipt; a closed hold does not change any more.",
    ),
    FaultCode.BILLING_HOLD_NOT_FOUND: _money(
        grpc_status="NOT_FOUND",
        meaning="There is no hold for this run.",
        remedy="Check the name of the run; refused submissions have no hold.",
    ),
    FaultCode.BILLING_PLAN_UNKNOWN: _money(
        grpc_status="INVALID_ARGUMENT",
        meaning="There is no plan of this name.",
        remedy="Choose one of the plans that the message lists.",
    ),
    FaultCode.DEP_GPU_NOT_AVAILABLE: _dependency(
        meaning="The backend needs CUDA, and this node has none.",
        remedy="Use a node with a GPU, or choose the CPU backend; an exported GGUF runs without "
        "a GPU.",
        symptoms=(
            "`torch.cuda.is_available()` is False",
            "`AssertionError: Torch not compiled with CUDA enabled`",
        ),
    ),
    FaultCode.DEP_MLX_UNAVAILABLE: _dependency(
        retry=Retry.NEVER,
        grpc_status="FAILED_PRECONDITION",
        meaning="The backend is MLX, but `mlx_lm` cannot be imported or run here.",
        remedy="Install `mlx-lm` on the node, or choose another backend.",
        symptoms=("`ModuleNotFoundError: No module named 'mlx_lm'`",),
    ),
    FaultCode.DEP_OLLAMA_REGISTRATION_FAILED: _dependency(
        meaning="The model could not be registered with Ollama.",
        remedy="Start it with `ollama serve`; the default endpoint is `localhost:11434`.",
        symptoms=("`connection refused localhost:11434`",),
    ),
    FaultCode.DEP_SERVICE_UNAVAILABLE: _dependency(
        meaning="A service of the platform does not answer.",
        remedy="Try again in a moment; `tunesmith status` shows which service is away.",
        symptoms=("`UNAVAILABLE: failed to connect to all addresses`",),
    ),
    FaultCode.INTERNAL_UNEXPECTED: _dependency(
        category=Category.INTERNAL,
        grpc_status="INTERNAL",
        meaning="Something unexpected happened inside the platform.",
        remedy="The operators have been notified. Try again; if it persists, contact "
        "support with the run id.",
    ),
    FaultCode.QUOTA_ARTIFACTS_EXCEEDED: _money(
        retry=Retry.SMALLER,
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The estimated LoRA and GGUF files exceed the free artifact storage.",
        remedy="Delete artifacts that are not needed and submit again, or submit without GGUF.",
    ),
    FaultCode.QUOTA_DATASETS_EXCEEDED: _money(
        retry=Retry.SMALLER,
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The file exceeds the free dataset storage.",
        remedy="Delete datasets that are not needed and push again.",
    ),
    FaultCode.STORAGE_CHECKSUM_MISMATCH: _storage(
        retry=Retry.SAME,
        grpc_status="DATA_LOSS",
        meaning="The bytes differ from the stored ones.",
        remedy="Transfer the file again; report it when it happens twice.",
    ),
    FaultCode.STORAGE_FULL: _storage(
        retry=Retry.SAME,
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The disk or the object store is full.",
        remedy="Free space where the node or the object store keeps its files; then the same "
        "request succeeds.",
        symptoms=("`OSError: [Errno 28] No space left on device`",),
    ),
    FaultCode.STORAGE_KEY_INVALID: _storage(
        owner=Owner.USER,
        grpc_status="INVALID_ARGUMENT",
        meaning="The key or path of an object has characters or parts that are not allowed.",
        remedy="Use letters, digits, dots, hyphens and underscores, and no `..`.",
    ),
    FaultCode.STORAGE_OBJECT_EXISTS: _storage(
        grpc_status="ALREADY_EXISTS",
        meaning="The object exists with other bytes; objects are written once.",
        remedy="Ask for a fresh URL; a key is never written twice with different content.",
    ),
    FaultCode.STORAGE_OBJECT_NOT_FOUND: _storage(
        grpc_status="NOT_FOUND",
        meaning="There is no such object in the store.",
        remedy="Check that it was uploaded and not deleted.",
    ),
    FaultCode.STORAGE_SIZE_MISMATCH: _storage(
        owner=Owner.USER,
        grpc_status="INVALID_ARGUMENT",
        meaning="The number of bytes is not the announced one.",
        remedy="Ask for a URL with the real size and upload again.",
    ),
    FaultCode.STORAGE_URL_EXPIRED: _storage(
        owner=Owner.USER,
        retry=Retry.SAME,
        grpc_status="PERMISSION_DENIED",
        meaning="The signed URL has expired.",
        remedy="Ask for a fresh one; every request makes a new URL.",
        symptoms=("HTTP 403 on a download link",),
    ),
    FaultCode.STORAGE_URL_INVALID: _storage(
        owner=Owner.USER,
        grpc_status="PERMISSION_DENIED",
        meaning="The URL does not carry a valid signature.",
        remedy="Use the URL exactly as it was given, with the method it was given for.",
        symptoms=("HTTP 403 on a download link",),
    ),
    FaultCode.STORAGE_URL_NOT_RENEWED: _storage(
        retry=Retry.SAME,
        grpc_status="UNAVAILABLE",
        meaning="The signed URL of an input ended while a worker fetched it, and no working one "
        "could be had in its place.",
        remedy="The run is tried again by itself. If it persists: the clocks of hub and gateway "
        "must agree, both need the same keys of signed URLs, and the scheduler must be no older "
        "than its workers.",
    ),
}
