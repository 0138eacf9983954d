"""What agent and training child say to each other, by `chassis.child`."""

import msgspec

from trainer.domain.continual import MergeRecord
from trainer.domain.device import CPU_TIER, UnslothPolicy
from trainer.domain.plan import TrainPlan

# The longest message is a plan with its prompts, or samples; weights never travel here.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator's node grants a child, in its second argument: needed before any plan.

    `unsloth_failure` is the short cause why Unsloth is left out; empty when nothing is against it.
    """

    tier: str = CPU_TIER
    unsloth: UnslothPolicy = UnslothPolicy.AUTO
    unsloth_failure: str = ""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A message; msgspec distinguishes the kinds by the name of the class."""


class Train(_Message, frozen=True, kw_only=True):
    """To the child: train this."""

    plan: TrainPlan


class Finish(_Message, frozen=True, kw_only=True):
    """To the child: end at the next step and save what there is."""


class Pause(_Message, frozen=True, kw_only=True):
    """To the child: wait before the next step."""


class Resume(_Message, frozen=True, kw_only=True):
    """To the child: go on."""


class Ready(_Message, frozen=True, kw_only=True):
    """From the child: libraries are loaded, a plan may come.

    `cached_models` names the bases in memory, `notes` what of driver and libraries does not go
    together.
    """

    cached_models: tuple[str, ...]
    capabilities: tuple[str, ...]
    notes: tuple[str, ...] = ()


class StageBegan(_Message, frozen=True, kw_only=True):
    """From the child: `initialization`, `training` or `saving` began."""

    stage: str


class Doing(_Message, frozen=True, kw_only=True):
    """From the child: what it does now, in words for the user, while there are no figures."""

    text: str


class Started(_Message, frozen=True, kw_only=True):
    """From the child: the first optimizer step of this attempt begins now."""

    from_step: int
    total_steps: int


class StepTaken(_Message, frozen=True, kw_only=True):
    """From the child: one optimizer step is done."""

    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    real_token_ratio: float
    memory_bytes: int
    remaining_seconds: float | None
    validation_loss: float | None
    micro_batch_size: int
    accumulation_steps: int
    trained_token_count: int
    preference_margin: float | None = None
    preference_accuracy: float | None = None


class Warned(_Message, frozen=True, kw_only=True):
    """From the child: something a user should know that does not end the run."""

    code: str
    message: str


class CheckpointWritten(_Message, frozen=True, kw_only=True):
    """From the child: a whole checkpoint lies in `folder`."""

    step: int
    folder: str


class RunMerged(_Message, frozen=True, kw_only=True):
    """From the child: a run of a continual training ended; `path` holds the adapter after it."""

    record: MergeRecord
    path: str | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample: the answers of adapter and base to the same prompt, after `step` steps."""

    prompt: str
    completion: str
    base_completion: str
    flags: tuple[str, ...]
    step: int = 0


class Sampled(_Message, frozen=True, kw_only=True):
    """From the child: samples of the adapter that still trains; they replace earlier ones."""

    samples: tuple[Sample, ...]


class UnslothFailed(_Message, frozen=True, kw_only=True):
    """From the child: Unsloth could not load this plan, and has changed the libraries around it.

    The plan belongs to a new child that leaves Unsloth out; this one is of no more use.
    """

    cause: str


class Finished(_Message, frozen=True, kw_only=True):
    """From the child: the adapter lies in `adapter_folder`; the next plan may come.

    `merges_folder` holds the merge history of a continual training.
    """

    adapter_folder: str
    proof_path: str | None
    merges_folder: str | None = None
    samples: tuple[Sample, ...]
    cached_models: tuple[str, ...]


class Failed(_Message, frozen=True, kw_only=True):
    """From the child: the run ended badly; the child is ready for the next plan."""

    code: str
    message: str
    stage: str
    metadata: dict[str, str]
    remedy: str = ""


ToChild = Train | Finish | Pause | Resume
FromChild = (
    Ready
    | StageBegan
    | Doing
    | Started
    | StepTaken
    | Warned
    | CheckpointWritten
    | RunMerged
    | Sampled
    | UnslothFailed
    | Finished
    | Failed
)

to_child: "msgspec.json.Decoder[ToChild]" = msgspec.json.Decoder(ToChild)
from_child: "msgspec.json.Decoder[FromChild]" = msgspec.json.Decoder(FromChild)
