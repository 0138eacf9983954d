"""Rows of the codes about the inputs of a run: datasets and base models."""

from collections.abc import Mapping
from functools import partial

from lexicon.codes import FaultCode
from lexicon.rows import Category, FaultRow, Owner, Retry

_SCHEMA_REMEDY = (
    "Inspect the schema with `tunesmith dataset inspect`, confirm that every row has the fields "
    "of its format, and follow the page on the JSONL formats (docs/datasets.md)."
)

# A failed run on a verified model is refunded; these codes can end one.
_dataset = partial(
    FaultRow,
    category=Category.DATASET_VALIDATION,
    owner=Owner.USER,
    retry=Retry.NEVER,
    refundable=True,
    grpc_status="INVALID_ARGUMENT",
    remedy=_SCHEMA_REMEDY,
)
_model = partial(
    FaultRow,
    category=Category.UNSUPPORTED_ARCHITECTURE,
    owner=Owner.USER,
    retry=Retry.NEVER,
    refundable=True,
    grpc_status="FAILED_PRECONDITION",
)

ROWS: Mapping[FaultCode, FaultRow] = {
    FaultCode.DATASET_CHECKSUM_MISMATCH: _dataset(
        retry=Retry.SAME,
        grpc_status="FAILED_PRECONDITION",
        meaning="The uploaded bytes differ from the announced ones.",
        remedy="Push the dataset again; the file changed or was cut on its way.",
    ),
    FaultCode.DATASET_DELETED: _dataset(
        grpc_status="FAILED_PRECONDITION",
        meaning="A dataset of the run was deleted.",
        remedy="Push the dataset again, or take it out of the run.",
    ),
    FaultCode.DATASET_EMPTY: _dataset(
        meaning="The dataset has no rows.",
        remedy="Push a file with at least one row.",
    ),
    FaultCode.DATASET_FIELD_MISSING: _dataset(
        meaning="A row lacks a field that its format requires.",
        symptoms=("`Dataset row N missing required field 'output'`",),
    ),
    FaultCode.DATASET_FILE_INVALID: _dataset(
        meaning="The file cannot be read as JSONL, JSON, CSV, Parquet or text.",
        remedy="Save the file as UTF-8 JSONL with one object a line, and push it again.",
    ),
    FaultCode.DATASET_FORMAT_MIXED: _dataset(
        meaning="The rows of the file have different formats.",
        remedy="Split the file so that each part has one format, push the parts and attach all "
        "of them.",
    ),
    FaultCode.DATASET_FORMAT_UNKNOWN: _dataset(
        meaning="The columns fit none of the formats.",
    ),
    FaultCode.DATASET_NOT_FOUND: _dataset(
        grpc_status="NOT_FOUND",
        meaning="There is no dataset of this name in the project.",
        remedy="Look at `tunesmith dataset list`; the message names similar ones where there are.",
    ),
    FaultCode.DATASET_NO_TRAINED_TOKENS: _dataset(
        meaning="No token of the dataset would be trained on.",
        remedy="Give rows with an answer that is not empty, check the setting of what is trained "
        "on, or raise the longest sequence so that answers are not cut off.",
    ),
    FaultCode.DATASET_NO_VALID_ROWS: _dataset(
        meaning="No valid training rows found; check that columns match instruction/output, "
        "messages, or prompt/completion format.",
        symptoms=(
            (
                "`No valid training rows found; check that columns match instruction/output, "
                "messages, or prompt/completion format.`"
            ),
        ),
    ),
    FaultCode.DATASET_ROW_INVALID: _dataset(
        meaning="A row cannot be used.",
    ),
    FaultCode.DATASET_TOKENS_TOO_MANY: _dataset(
        retry=Retry.SMALLER,
        meaning="Rows are longer than the longest sequence; they are cut there.",
        remedy="Raise the longest sequence (training.max_sequence_tokens), or shorten the rows.",
    ),
    FaultCode.DATASET_TOO_LARGE: _dataset(
        retry=Retry.SMALLER,
        meaning="The file, a line or a row of it is larger than what is accepted.",
        remedy="Split the file, or shorten the row that the message names.",
    ),
    FaultCode.DATASET_UPLOAD_NOT_FOUND: _dataset(
        grpc_status="NOT_FOUND",
        meaning="There is no open upload of this name, or its file never arrived.",
        remedy="Begin the upload again: `tunesmith dataset push`.",
    ),
    FaultCode.DEP_MODEL_LOAD_FAILED: _model(
        category=Category.DEPENDENCY,
        retry=Retry.SAME,
        meaning="The base model could not be loaded from the model hub.",
        remedy="Copy the exact `org/name` from the model's page and try again.",
        symptoms=(
            "401 Client Error or 404 Client Error from `huggingface_hub`",
            "`GatedRepoError` or `RepositoryNotFoundError`",
        ),
        variants={
            "hub_401": "Accept the licence on the model's page, then `huggingface-cli login` or "
            "export `HF_TOKEN`.",
            "hub_403": "The model is gated: ask for access on its page, accept the licence, then "
            "`huggingface-cli login` or export `HF_TOKEN` of the account that has access.",
            "hub_404": "Check for typos and copy the exact `org/name` from the model's page.",
            "hub_unreachable": "The model hub does not answer: try again in a few minutes. "
            "Hint: Check that model exists on Hub",
        },
    ),
    FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED: _model(
        meaning="Unsupported architecture: the framework has no kernels for this model.",
        remedy="Take a verified base of similar size and family: Llama, Mistral, Mixtral, Phi, "
        "Gemma, Qwen, SmolLM or TinyLlama.",
        symptoms=("`Unsupported architecture: SomeNewModel`",),
        variants={
            "value_error": "Check that the model is CausalLM and that its parameters are in range."
        },
    ),
    FaultCode.MODEL_CHAT_TEMPLATE_INVALID: _model(
        category=Category.TOKENIZATION,
        meaning="The model's chat template cannot be rendered safely.",
        remedy="Take another model, or one whose template uses plain loops and conditions.",
    ),
    FaultCode.MODEL_CHAT_TEMPLATE_MISSING: _model(
        category=Category.TOKENIZATION,
        meaning="Chat template missing; falling back to ChatML.",
        remedy="No action is needed: run and export use ChatML. An "
        "instruct model of the same family has a template of its own.",
        symptoms=("`Chat template missing for model X; falling back to ChatML`",),
    ),
    FaultCode.MODEL_CODE_IGNORED: _model(
        meaning="The model's config names code; it is never run.",
        remedy="No action is needed: the platform uses its own code for the architecture.",
    ),
    FaultCode.MODEL_CONFIG_INVALID: _model(
        meaning="The model's config.json is not a description of a causal language model.",
        remedy="Check that the model is CausalLM and that its parameters are in range, or take a "
        "verified model.",
    ),
    FaultCode.MODEL_CONSENT_MISSING: _model(
        category=Category.SUBMISSION_REJECTED,
        refundable=False,
        meaning="The model is not verified, and the consent to run it without refund was not "
        "given.",
        remedy="Give the consent (`tunesmith run submit --waive-refund …`), or take a verified "
        "model.",
    ),
    FaultCode.MODEL_MOVED: _model(
        category=Category.DEPENDENCY,
        meaning="The model was renamed or moved on the model hub.",
        remedy="No action is needed now; use the model's new id in the future.",
    ),
    FaultCode.MODEL_NOT_CONVERTIBLE: _model(
        category=Category.EXPORT,
        meaning="The model cannot be converted to GGUF.",
        remedy="Submit without GGUF to get the adapter alone, or take a verified model.",
    ),
    FaultCode.MODEL_NOT_FOUND: _model(
        category=Category.SUBMISSION_REJECTED,
        grpc_status="NOT_FOUND",
        refundable=False,
        meaning="There is no model of this name.",
        remedy="Check for typos and copy the exact `org/name` from the model's page.",
    ),
    FaultCode.MODEL_PACKING_UNSAFE: _model(
        meaning="In this model, examples that share a row would attend to each other; a warning.",
        remedy="No action is needed: every example gets a row of its own, which is slower.",
    ),
    FaultCode.MODEL_TOKENIZER_NOT_FOUND: _model(
        category=Category.TOKENIZATION,
        meaning="The model has no tokenizer; without one there is no training.",
        remedy="The repository lacks tokenizer files: pick another model.",
        symptoms=("`Tokenizer not found for model X`",),
    ),
    FaultCode.MODEL_UNVERIFIED: _model(
        category=Category.SUBMISSION_REJECTED,
        refundable=False,
        meaning="The model is not in the verified catalog; the platform does not vouch for it.",
        remedy="Take a verified catalog model of similar size and family when the run must be "
        "refundable.",
    ),
    FaultCode.MODEL_WEIGHTS_INVALID: _model(
        category=Category.TRAINING,
        meaning="The model's weights are incomplete, corrupted or not safetensors.",
        remedy="Verify that the checkpoint is complete and uncorrupted, and that it is in "
        "safetensors format.",
        symptoms=("`SafetensorError` or a size mismatch while the weights are loaded",),
    ),
}
