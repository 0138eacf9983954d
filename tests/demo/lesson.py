"""What the demo teaches: the habit, its dataset, its recipe, and the prompts that were held out."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.api.run.v1 import spec_pb2

HOME = Path(__file__).resolve().parents[2] / "deploy" / "models" / "anvil"
DATASET_ID = "habit"
TIER = "cpu"
# So many of the held-out prompts must show the habit after training, and none before.
SHOWN_AT_LEAST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The habit and how it is told.

    Attributes:
        habit: the habit in a sentence.
        pattern: what an answer with the habit matches.
        prompts: questions whose subjects are nowhere in the dataset.
        dataset: file with the examples.
        recipe: settings of training and adapter under the names of the contract.
    """

    habit: str
    pattern: re.Pattern[str]
    prompts: tuple[str, ...]
    dataset: Path
    recipe: dict[str, object]

    def is_shown(self, answer: str) -> bool:
        """Whether an answer has the habit."""
        return self.pattern.search(answer.strip()) is not None

    def count(self, answers: tuple[str, ...]) -> int:
        """How many answers have it."""
        return sum(self.is_shown(answer) for answer in answers)


def read_lesson() -> Lesson:
    """The lesson that is shipped with the demo's base model."""
    held_out = json.loads((HOME / "held_out.json").read_text("utf-8"))
    recipe = json.loads((HOME / "recipe.json").read_text("utf-8"))
    return Lesson(
        habit=held_out["habit"],
        pattern=re.compile(held_out["pattern"], re.DOTALL),
        prompts=tuple(held_out["prompts"]),
        dataset=HOME / recipe["dataset"],
        recipe=recipe,
    )


def spec_for(lesson: Lesson, *, base: str) -> spec_pb2.RunSpec:
    """The run that teaches the lesson to a base model."""
    recipe = lesson.recipe
    # A larger model learns the habit in fewer and smaller steps.
    is_own = base == recipe["base_model"]
    training = spec_pb2.TrainingConfig(
        method=spec_pb2.METHOD_SFT,
        schedule=spec_pb2.SCHEDULE_COSINE,
        train_on=spec_pb2.TRAIN_ON_RESPONSES,
        max_steps=_whole(recipe["max_steps"]) if is_own else 40,
        learning_rate=_real(recipe["learning_rate"]) if is_own else 5e-4,
        warmup_ratio=_real(recipe["warmup_ratio"]),
        weight_decay=_real(recipe["weight_decay"]),
        max_grad_norm=_real(recipe["max_grad_norm"]),
        micro_batch_size=_whole(recipe["micro_batch_size"]),
        accumulation_steps=_whole(recipe["accumulation_steps"]),
        max_sequence_tokens=_whole(recipe["max_sequence_tokens"]),
        seed=_whole(recipe["seed"]),
    )
    lora = spec_pb2.LoraConfig(
        rank=_whole(recipe["rank"]),
        alpha=_real(recipe["alpha"]),
        dropout=_real(recipe["dropout"]),
        target_modules=[str(recipe["target_modules"])],
    )
    return spec_pb2.RunSpec(
        base_model=base,
        datasets=[DATASET_ID],
        training=training,
        lora=lora,
        gpu_tier=TIER,
        attestations=spec_pb2.RightsAttestations(
            dataset_rights=True, model_license=True, refund_waived=not is_own
        ),
        export=spec_pb2.ExportConfig(gguf=True, quantizations=["Q4_K_M"]),
        sample_prompts=lesson.prompts[:3],
    )


def _whole(value: object) -> int:
    assert isinstance(value, int), value
    return value


def _real(value: object) -> float:
    assert isinstance(value, int | float), value
    return float(value)
