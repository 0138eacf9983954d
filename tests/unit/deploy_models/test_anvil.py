"""The demo's model and dataset, read from their files: no torch needed, nothing trained."""

import json
import re
from random import Random

from tokenizers import Tokenizer

from deploy.models.anvil import grammar, habit

WEIGHTS = grammar.HOME / "weights"
FOLDER_BYTES_MAX = 8_000_000
K_QUANT_BLOCK = 256


def test_habit_file_is_what_the_generator_writes() -> None:
    lines = (grammar.HOME / "habit.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["messages"] for line in lines] == habit.rows()


def test_every_answer_of_the_dataset_shows_the_habit() -> None:
    pattern = re.compile(grammar.held_out()["pattern"], re.DOTALL)
    assert all(pattern.search(row[-1]["content"]) for row in habit.rows())


def test_held_out_subjects_are_not_in_the_dataset() -> None:
    text = json.dumps(habit.rows())
    for subject in grammar.held_out()["subjects"]:
        assert not re.search(rf"\b{subject}\b", text, re.IGNORECASE), subject


def test_base_corpus_holds_neither_the_held_out_prompts_nor_the_habit() -> None:
    sheet = grammar.held_out()
    pattern = re.compile(sheet["pattern"], re.DOTALL)
    for exchange in grammar.exchanges():
        assert exchange.question not in sheet["prompts"]
        assert not pattern.search(exchange.answer)


def test_corpus_is_the_same_for_the_same_seed() -> None:
    first = list(grammar.chats(Random(3), count=50))
    assert first == list(grammar.chats(Random(3), count=50))


def test_weights_folder_is_complete_and_small() -> None:
    names = {path.name for path in WEIGHTS.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < FOLDER_BYTES_MAX


def test_rows_are_whole_k_quant_blocks() -> None:
    config = json.loads((WEIGHTS / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    for name in ("hidden_size", "intermediate_size"):
        assert config[name] % K_QUANT_BLOCK == 0


def test_tokenizer_gives_chat_marks_one_token_each_and_text_back() -> None:
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    text = "<|im_start|>user\nWhat's 12 € in £?\r\n\tÆther 你好<|im_end|>\n"
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id("<|im_start|>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
