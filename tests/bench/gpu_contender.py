"""One contender of `tests.bench.gpu`: trains all rows at every line it reads, and tells one line.

What it imports depends on who it is: Unsloth has to come before transformers and PEFT, and must not
be in the process of a contender without it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.bench.gpu import OUR_PEFT, OURS, STOCK, STOCK_UNSLOTH
from trainer.training.libraries import import_peft, import_unsloth

BATCH, RANK = 8, 16
DEFAULT_SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151_936,
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
WITH_UNSLOTH = (OURS, STOCK_UNSLOTH)


def main() -> None:
    """Be the contender that the arguments name."""
    name, folder, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if name == "make":
        make_model(folder, Path(rest) if rest else None)
        return
    try:
        train = contender(name, folder, int(rest))
    except Exception as error:  # noqa: BLE001 - a peer that does not run is told, not hidden
        tell({"failure": f"{type(error).__name__}: {error}"})
        return
    tell({"ready": name, "card": torch.cuda.get_device_name()})
    for _ in sys.stdin:
        torch.cuda.reset_peak_memory_stats()
        figures = train()
        torch.cuda.synchronize()
        tell({**figures, "peak_mib": torch.cuda.max_memory_allocated() >> 20})


def contender(name: str, folder: Path, row_count: int) -> Any:
    """What trains all rows once and gives figures."""
    if not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA here")
    library = import_unsloth() if name in WITH_UNSLOTH else import_peft()
    from tests.bench.packing import alpaca_like
    from tests.support.training import a_plan
    from trainer.training.compute_precision import ComputePrecision

    plan = a_plan(
        micro_batch_size=BATCH, accumulation_steps=1, lr_peak=2e-4, warmup_ratio=0.0,
        adapter_rank=RANK, adapter_alpha=2.0 * RANK, gradient_checkpointing=True,
    )  # fmt: skip
    base = type(plan.base)(
        base_model="bench", model_id="bench", revision="", folder=str(folder), digest="bench"
    )
    bf16 = torch.bfloat16
    compute_precision = ComputePrecision(device=torch.device("cuda"), weights=bf16, autocast=bf16)
    adapted = library.attach(
        library.load_base(base, compute_precision), plan.build, seed=plan.batches.seed
    )
    rows = alpaca_like(row_count)
    match name:
        case _ if name in {OURS, OUR_PEFT}:
            return lambda: ours(adapted, plan, rows, compute_precision)
        case _ if name in {STOCK, STOCK_UNSLOTH}:
            if name == STOCK:
                adapted.get_base_model().set_attn_implementation("sdpa")
            return lambda: stock(adapted, rows)
        case _:
            raise ValueError(name)


def ours(adapted: Any, plan: Any, rows: Any, compute_precision: Any) -> dict[str, Any]:
    """One pass of our loop."""
    from tests.support.training import a_state
    from trainer.training import loop

    state = a_state(adapted.train(), plan, compute_precision=compute_precision)
    steps = -(-len(rows) // BATCH)
    taken = [loop.take_step(state, rows, steps=steps, healed=lambda _: None) for _ in range(steps)]
    return {
        "tokens": sum(step.token_count for step in taken),
        "losses": [step.loss for step in taken],
        "grad_norms": [step.grad_norm for step in taken],
    }


def stock(adapted: Any, rows: Any) -> dict[str, Any]:
    """One pass of transformers.Trainer, padded, in the same order of rows as ours."""
    from transformers import Trainer, TrainingArguments

    from tests.support.peer_trainer import Figures, collate
    from tests.support.training import a_plan
    from trainer.training.batches import step_indices

    plan = a_plan(micro_batch_size=BATCH, accumulation_steps=1)
    steps = -(-len(rows) // BATCH)
    order = [
        int(i)
        for step in range(steps)
        for i in step_indices(plan.batches, row_count=len(rows), step=step)
    ]
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=2e-4,
                lr_scheduler_type="cosine",
                bf16=True,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
                train_sampling_strategy="sequential",
            ),
            train_dataset=[rows[i] for i in order],
            data_collator=lambda chosen: collate(chosen, figures),
            callbacks=[figures.callback()],
        ).train()
    return {
        "tokens": figures.real_count,
        "losses": figures.losses,
        "grad_norms": figures.grad_norms,
    }


def make_model(folder: Path, config: Path | None) -> None:
    """A model of random weights with Anvil's tokenizer, as a publisher would give it."""
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    from deploy.models.anvil.grammar import HOME

    described = json.loads(config.read_text("utf-8")) if config else DEFAULT_SHAPE
    (folder / "config.json").write_text(json.dumps(described), "utf-8")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        source = HOME / "weights" / name
        if source.exists():
            shutil.copyfile(source, folder / name)


def tell(message: dict[str, Any]) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
