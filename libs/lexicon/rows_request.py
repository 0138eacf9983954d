"""Rows of the codes about a request: its caller, its content and its settings."""

from collections.abc import Mapping
from functools import partial

from lexicon.codes import FaultCode
from lexicon.rows import Category, FaultRow, Owner, Retry

_refused = partial(
    FaultRow,
    category=Category.SUBMISSION_REJECTED,
    owner=Owner.USER,
    retry=Retry.NEVER,
    refundable=False,
    grpc_status="INVALID_ARGUMENT",
)

ROWS: Mapping[FaultCode, FaultRow] = {
    FaultCode.ACCESS_DENIED: _refused(
        grpc_status="PERMISSION_DENIED",
        meaning="This token may not call this method.",
        remedy="Use a token of the right role: a project token for runs and data, an operator "
        "token for credits, plans and operators' reports.",
    ),
    FaultCode.ACCESS_HOST_UNKNOWN: _refused(
        grpc_status="PERMISSION_DENIED",
        meaning="The request names a host that does not belong to this platform.",
        remedy="Use the address that the platform gave; operators name further hosts in "
        "TUNESMITH_HTTP_HOSTS.",
    ),
    FaultCode.ACCESS_PROJECT_FORBIDDEN: _refused(
        grpc_status="PERMISSION_DENIED",
        meaning="The name belongs to another project than the token.",
        remedy="Use the token of that project, or a name that begins with your own project.",
    ),
    FaultCode.ACCESS_TOKEN_INVALID: _refused(
        grpc_status="UNAUTHENTICATED",
        meaning="The token is not valid, or no longer.",
        remedy="Run `tunesmith login` with a fresh token.",
        variants={"expired": "The token has expired: run `tunesmith login` with a fresh token."},
    ),
    FaultCode.ACCESS_TOKEN_MISSING: _refused(
        grpc_status="UNAUTHENTICATED",
        meaning="The call carries no token.",
        remedy="Run `tunesmith login`, or send the metadata `authorization: Bearer <token>`.",
    ),
    FaultCode.CAPACITY_NO_GPU_FITS: _refused(
        retry=Retry.SMALLER,
        grpc_status="FAILED_PRECONDITION",
        meaning="The run does not fit into the memory of the chosen GPU tier.",
        remedy="Choose a larger tier or a smaller base model, or lower the micro-batch and the "
        "longest sequence.",
        symptoms=("The validator refuses a model of 5 billion parameters or more on T4.",),
    ),
    FaultCode.CONFIG_ATTESTATION_MISSING: _refused(
        meaning="The attestation of rights on model and data was not given.",
        remedy="Read the attestation and give it: `tunesmith run submit --attest …`.",
    ),
    FaultCode.CONFIG_ENV_MISSING: _refused(
        category=Category.INTERNAL,
        owner=Owner.PLATFORM,
        grpc_status="FAILED_PRECONDITION",
        meaning="An environment variable that the process needs is not set.",
        remedy="Set the variable that the message names and start the process again.",
        symptoms=("`NAME environment variable not set!`",),
    ),
    FaultCode.CONFIG_INVALID: _refused(
        meaning="The settings do not go together.",
        remedy="Change the setting that the message names.",
        symptoms=("`Invalid config: …`", "`samples_per_run exceeds training pool`"),
        variants={
            # `pool` is the size of the training pool in rows, metadata of the fault.
            "training_pool": "Reduce --samples (Python: samples_per_run) below {pool}, add data, "
            "or disable validation with `validate_every_run=False, early_stopping=False`.",
        },
    ),
    FaultCode.CONFIG_INVALID_SETTING: _refused(
        meaning="A setting is not possible with this backend or on this host.",
        remedy="MLX needs macOS on arm64 and trains LoRA SFT only; use `--backend auto` elsewhere.",
        symptoms=("`--backend mlx` on a host that is not from Apple",),
    ),
    FaultCode.CONFIG_LEG_MISSING: _refused(
        meaning="A required part of the run is missing: base model, dataset, training config, "
        "LoRA config, GPU tier or attestations.",
        remedy="Add the part that the message names and submit again.",
        symptoms=("`Failed to submit training job`", "`Invalid config: …`"),
    ),
    FaultCode.CONFIG_QUANTIZATION_UNKNOWN: _refused(
        meaning="There is no quantisation of this name.",
        remedy="Use Q4_K_M, or one of those that the message lists.",
    ),
    FaultCode.CONFIG_RANK_OUT_OF_RANGE: _refused(
        meaning="The rank of the adapter must be 1 to 256.",
        remedy="Choose a rank of 1 to 256; 16 is a good start.",
    ),
    FaultCode.CONFIG_TARGET_UNKNOWN: _refused(
        meaning="A target module does not exist in this architecture.",
        remedy="Use `all-linear`, or modules that the message lists.",
    ),
    FaultCode.CONFIG_TIER_NOT_IN_PLAN: _refused(
        grpc_status="FAILED_PRECONDITION",
        meaning="The chosen GPU tier is not in the project's plan.",
        remedy="Choose a tier of the plan, or move to a plan that has this one.",
        symptoms=("A10G on the free plan",),
    ),
    FaultCode.CONFIG_TIER_UNKNOWN: _refused(
        meaning="There is no GPU tier of this name.",
        remedy="Choose one of the tiers that the message lists.",
    ),
    FaultCode.CONFIG_VALUE_OUT_OF_RANGE: _refused(
        meaning="A value is outside its range.",
        remedy="Choose a value inside the range that the message names.",
    ),
    FaultCode.INPUT_FAULT_UNKNOWN: _refused(
        grpc_status="NOT_FOUND",
        meaning="There is no fault of this code.",
        remedy="Look at the list: `tunesmith fault list`.",
    ),
    FaultCode.INPUT_FIELD_INVALID: _refused(
        meaning="A field of the request has a value that is not allowed.",
        remedy="Correct the field that the message names.",
    ),
    FaultCode.INPUT_FIELD_MISSING: _refused(
        meaning="A required field of the request is missing.",
        remedy="Fill in the field that the message names.",
    ),
    FaultCode.INPUT_MESSAGE_TOO_DEEP: _refused(
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The request is nested deeper than anything the contract needs.",
        remedy="Send the message as the contract describes it.",
    ),
    FaultCode.INPUT_MESSAGE_TOO_LARGE: _refused(
        grpc_status="RESOURCE_EXHAUSTED",
        meaning="The request is larger than the service accepts.",
        remedy="Send files through signed URLs and large lists in pages.",
    ),
    FaultCode.INPUT_METHOD_UNKNOWN: _refused(
        grpc_status="UNIMPLEMENTED",
        meaning="The service has no such method.",
        remedy="Compare the versions of client and platform; reflection lists the methods.",
    ),
    FaultCode.INPUT_NAME_INVALID: _refused(
        meaning="The resource name is malformed.",
        remedy="Use lower-case letters, digits and hyphens, 1 to 63 of them, in the form that "
        "the message shows.",
    ),
    FaultCode.INPUT_PAGE_TOKEN_INVALID: _refused(
        meaning="The page token does not belong to this list.",
        remedy="Begin with the first page again.",
    ),
    FaultCode.INPUT_REQUEST_ID_REUSED: _refused(
        grpc_status="ALREADY_EXISTS",
        meaning="This request id was used before for a different request.",
        remedy="Use a fresh request id for a new request, the same one only to repeat it.",
    ),
}
