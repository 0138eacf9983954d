"""What the exporter and its working child say to each other, by `chassis.child`."""

import msgspec

# The longest message is a fault with the output of a tool; weights never travel here.
MESSAGE_BYTES_MAX = 1 << 20
# In the metadata of a fault, as `of`: the files of the base may be its cause, not the adapter's.
OF_BASE = "base"


class BaseNeededError(Exception):
    """A base has to be fetched: nobody has converted it yet."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A message; msgspec distinguishes the kinds by the name of the class."""


class Export(_Message, frozen=True, kw_only=True):
    """To the child: make this bundle.

    `checkpoint` is the folder of the base as it came from the hub or the store, empty as long as
    nobody has asked for it; `base_key` is its name in the cache of converted bases. `target` is the
    archive to write; its folder is the child's to use. `is_converted_anew` says that an earlier
    conversion must not be used.
    """

    checkpoint: str
    base_key: str
    base_model: str
    adapter: str
    quantization: str
    target: str
    run: str
    is_converted_anew: bool = False


class Ready(_Message, frozen=True, kw_only=True):
    """From the child: imports, symbols and a tiny conversion passed; work may come."""

    llama_version: str
    fast_types: tuple[str, ...]


class BaseNeeded(_Message, frozen=True, kw_only=True):
    """From the child: there is no conversion of this base, and the job came without its files."""


class Progress(_Message, frozen=True, kw_only=True):
    """From the child: how far it is."""

    step: str
    percent: float


class Evicted(_Message, frozen=True, kw_only=True):
    """From the child: an entry of the cache that it deleted to make room."""

    name: str
    size_bytes: int


class ProofFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How the finished file behaves; all zero when there was no reference."""

    adapter_top1_agreement: float = 0.0
    base_top1_agreement: float = 0.0
    adapter_mean_kl: float = 0.0
    base_mean_kl: float = 0.0
    loss_delta: float = 0.0
    token_count: int = 0
    proven: bool = False


class Exported(_Message, frozen=True, kw_only=True):
    """From the child: the archive lies at `target`."""

    entries: tuple[str, ...]
    proof: ProofFigures
    seconds: dict[str, float]


class Failed(_Message, frozen=True, kw_only=True):
    """From the child: a fault, as it goes onto the wire later."""

    code: str
    message: str
    metadata: dict[str, str]
    remedy: str = ""


FromChild = Ready | BaseNeeded | Progress | Evicted | Exported | Failed

to_child = msgspec.json.Decoder(Export)
from_child: "msgspec.json.Decoder[FromChild]" = msgspec.json.Decoder(FromChild)
