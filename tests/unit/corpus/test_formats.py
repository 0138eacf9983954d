"""Inspection of dataset files: formats, exact error texts, caps."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus import rows
from corpus.formats import Format, inspect_file, iterate_rows
from corpus.samples import ChatSample, KtoSample, iterate_samples, to_sample
from lexicon.faults import Fault, FaultCode

ROWS: dict[Format, dict[str, Any]] = {
    Format.MESSAGES: {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    },
    Format.CONVERSATIONS: {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    },
    Format.INSTRUCTION: {"instruction": "Add", "input": "1 1", "output": "2"},
    Format.PROMPT_COMPLETION: {"prompt": "Hi", "completion": "Ho"},
    Format.INPUT_OUTPUT: {"input": "Hi", "output": "Ho"},
    Format.TEXT: {"text": "Once upon a time."},
    Format.PREFERENCE: {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
    Format.KTO: {"prompt": "Hi", "completion": "Ho", "label": True},
}
FLAT = [name for name in Format if name not in {Format.MESSAGES, Format.CONVERSATIONS}]


def json_lines(folder: Path, *values: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


def refusal(path: Path, **names: str) -> Fault:
    with pytest.raises(Fault) as caught:
        inspect_file(path, **names)
    return caught.value


@pytest.mark.parametrize("data_format", list(Format))
def test_every_row_shape_is_recognised(data_format: Format, tmp_path: Path) -> None:
    """A11"""
    found = inspect_file(json_lines(tmp_path, ROWS[data_format], ROWS[data_format]))
    assert found.format is data_format
    assert (found.row_count, found.trainable_row_count) == (2, 2)
    assert found.duplicate_row_count == 1


@pytest.mark.parametrize("data_format", list(Format))
def test_a_json_array_reads_like_lines(data_format: Format, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ROWS[data_format]] * 3, indent=2))
    assert inspect_file(path) == inspect_file(json_lines(tmp_path, *[ROWS[data_format]] * 3))


@pytest.mark.parametrize("data_format", list(Format))
def test_parquet_reads_like_lines(data_format: Format, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([ROWS[data_format]] * 3), path)
    assert inspect_file(path) == inspect_file(json_lines(tmp_path, *[ROWS[data_format]] * 3))


def repeated(text: str, *, rows: int, messages: int = 0) -> pa.Table:
    """One text in every row, of which the file holds a single copy."""
    count = rows * max(1, messages)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))
    if not messages:
        return pa.table({"text": texts})
    roles = pa.array(["user", "assistant"] * (count // 2))
    turns = pa.StructArray.from_arrays([texts, roles], ["content", "role"])
    offsets = pa.array(range(0, count + 1, messages), pa.int32())
    return pa.table({"messages": pa.ListArray.from_arrays(offsets, turns)})


@pytest.mark.parametrize("messages", [0, 8])
def test_a_text_that_parquet_repeats_takes_no_memory_for_each_time(
    messages: int, tmp_path: Path
) -> None:
    """Attack 18: a file of a kilobyte that would be gigabytes of rows."""
    path = tmp_path / "data.parquet"
    table = repeated("a" * (rows.MAX_ROW_BYTES + 1), rows=256, messages=messages)
    pq.write_table(
        table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30
    )
    assert path.stat().st_size < 4096
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    fault = refusal(path)
    assert fault.code is FaultCode.DATASET_ROW_INVALID
    assert fault.message == "Dataset row 1 is longer than 8 MiB"
    assert pool.max_memory() - before < 128 << 20


def test_parquet_repeats_what_it_may(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(repeated("Hi", rows=200, messages=2), path)
    assert inspect_file(path).trainable_row_count == 200


def test_texts_that_parquet_writes_as_ends_of_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    table = pa.table({"prompt": ["Hello", "Help"], "completion": ["a", "b"]})
    encoding = {"prompt": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, path, use_dictionary=False, column_encoding=encoding)
    assert [row["prompt"] for _, row in iterate_rows(path)] == ["Hello", "Help"]


@pytest.mark.parametrize(
    "column", [pa.array([1], pa.timestamp("ns")), pa.array([2**31 - 1], pa.date32())]
)
def test_a_date_that_python_cannot_hold_refuses_the_file(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"input": column, "output": ["a"]}), path)
    assert refusal(path).code is FaultCode.DATASET_FILE_INVALID


def test_a_record_that_goes_on_for_lines_has_a_bound(tmp_path: Path) -> None:
    """Attack 18: quotes make one row of a whole file, whose cells are many times its size."""
    path = tmp_path / "data.csv"
    line = "x," * (1 << 19)
    path.write_text("prompt,completion\na,b\n" + f'c,{line}"\n",' * 10 + "z\n")
    fault = refusal(path)
    assert fault.code is FaultCode.DATASET_ROW_INVALID
    assert fault.message == "Dataset row 2 is longer than 8 MiB"


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("data_format", FLAT)
def test_delimited_text_reads_like_lines(
    data_format: Format, delimiter: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[data_format]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows([ROWS[data_format]] * 3)
    assert inspect_file(path) == inspect_file(json_lines(tmp_path, *[ROWS[data_format]] * 3))


def test_a_quoted_cell_may_hold_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"a\nb","c ""d"""\n')
    assert list(iterate_rows(path)) == [(1, {"prompt": "a\nb", "completion": 'c "d"'})]


def test_plain_text_is_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("\ufeffOne.\n\nTwo.\r\n")
    assert [row for _, row in iterate_rows(path)] == [{"text": "One."}, {"text": "Two."}]


def test_a_missing_field_names_field_and_row(tmp_path: Path) -> None:
    """000-16"""
    full = ROWS[Format.INSTRUCTION]
    fault = refusal(json_lines(tmp_path, full, full, {"instruction": "Add"}))
    assert fault.code is FaultCode.DATASET_FIELD_MISSING
    assert fault.message == "Dataset row 3 missing required field 'output'"


def test_a_null_is_a_missing_field(tmp_path: Path) -> None:
    """000-16"""
    fault = refusal(json_lines(tmp_path, {"instruction": "Add", "output": None}))
    assert fault.message == "Dataset row 1 missing required field 'output'"


def test_columns_of_no_known_format_are_refused(tmp_path: Path) -> None:
    """000-17"""
    fault = refusal(json_lines(tmp_path, {"question": "Why?", "answer": "So."}))
    assert fault.code is FaultCode.DATASET_NO_VALID_ROWS
    assert fault.message == (
        "No valid training rows found; check that columns match instruction/output, messages, "
        "or prompt/completion format."
    )


def test_a_csv_of_unknown_columns_is_not_taken_for_plain_text(tmp_path: Path) -> None:
    """000-17"""
    path = tmp_path / "data.csv"
    path.write_text("question,answer\nWhy?,So.\n")
    assert refusal(path).code is FaultCode.DATASET_NO_VALID_ROWS


def test_rows_without_a_word_to_learn_are_not_valid_rows(tmp_path: Path) -> None:
    """000-17"""
    path = json_lines(tmp_path, {"instruction": "Add", "output": "  "})
    assert refusal(path).code is FaultCode.DATASET_NO_VALID_ROWS


def test_blank_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    path = json_lines(tmp_path, {"instruction": "Add", "output": ""}, ROWS[Format.INSTRUCTION])
    found = inspect_file(path)
    assert (found.row_count, found.trainable_row_count) == (2, 1)
    assert [number for number, _ in iterate_samples(path, found.format)] == [2]


def test_the_report_says_which_format_was_detected_and_from_which_row(tmp_path: Path) -> None:
    """000-18"""
    fault = refusal(json_lines(tmp_path, ROWS[Format.INSTRUCTION], {"instruction": "Add"}))
    assert fault.metadata["detected"] == "instruction"
    assert fault.metadata["detected_from_row"] == "1"
    assert inspect_file(json_lines(tmp_path, ROWS[Format.TEXT])).detected_from_row == 1


def test_two_formats_in_one_file_are_refused_with_a_split_hint(tmp_path: Path) -> None:
    """000-20"""
    fault = refusal(json_lines(tmp_path, ROWS[Format.INSTRUCTION], ROWS[Format.MESSAGES]))
    assert fault.code is FaultCode.DATASET_FORMAT_MIXED
    assert "Dataset row 2" in fault.message
    assert "Split the file" in fault.message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for content in ("", "\n\n", "[]", "prompt,completion\n"):
        path = tmp_path / "data.csv"
        path.write_text(content)
        assert refusal(path).code is FaultCode.DATASET_EMPTY, content


def test_bytes_that_are_not_what_the_name_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"\x89PNG\r\n")
    assert refusal(path, file_name="data.jsonl").code is FaultCode.DATASET_FILE_INVALID


@pytest.mark.parametrize(
    "line",
    [
        '{"text": NaN}',
        '{"text": "\\ud800"}',
        '{"text": 5}',
        '{"text": ["a"]}',
        '["text"]',
        '{"text": "a"',
        '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_hostile_lines_are_refused_with_their_number(line: str, tmp_path: Path) -> None:
    """Attack 18: NaN, lone surrogates, deep nesting, wrong types."""
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    fault = refusal(path)
    assert fault.code is FaultCode.DATASET_ROW_INVALID
    assert fault.metadata["row"] == "2"


def test_a_hostile_array_element_is_refused_with_its_number(tmp_path: Path) -> None:
    """Attack 18"""
    path = tmp_path / "data.json"
    for element in ("NaN", '{"text": ' + "[" * 100_000, '{"text": "a"'):
        path.write_text(f'[{{"text": "fine"}}, {element}')
        assert refusal(path).metadata["row"] == "2"


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "a"}] and more',
        '[{"text": "a"}][{"text": "b"}]',
        '[{"text": "a"} {"text": "b"}]',
        '[{"text": "a"},]',
        '[{"text": "a"},',
        '[,{"text": "a"}]',
        "[",
    ],
)
def test_rows_are_never_lost_behind_a_json_array_that_is_not_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    assert refusal(path).code in {FaultCode.DATASET_FILE_INVALID, FaultCode.DATASET_ROW_INVALID}


def test_small_rows_behind_a_large_one_do_not_each_copy_the_rest(tmp_path: Path) -> None:
    """Attack 18: with copies this file costs a terabyte of memory traffic."""
    path = tmp_path / "data.json"
    large = json.dumps({"text": "a" * (rows.MAX_ROW_BYTES - 100)})
    path.write_text(f"[{large}" + "," + ",".join(["{}"] * 100_000) + "]")
    began = time.process_time()
    assert sum(1 for _ in iterate_rows(path)) == 100_001
    assert time.process_time() - began < 2


def test_an_array_row_has_the_same_cap_as_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"text": "a" * 2000}]))
    assert refusal(path).code is FaultCode.DATASET_ROW_INVALID


def test_a_program_is_not_a_text(tmp_path: Path) -> None:
    """Attack 1: bytes that happen to be UTF-8 and are no text."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"\x7fELF" + bytes(100))
    assert refusal(path).code is FaultCode.DATASET_FILE_INVALID


def test_an_endless_line_is_refused_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack 18: a line without end."""
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    for name, opening in (("data.jsonl", '{"text": "'), ("data.json", '[{"text": "')):
        path = tmp_path / name
        path.write_text(opening + "a" * 2_000_000)
        assert refusal(path).code in {
            FaultCode.DATASET_FILE_INVALID,
            FaultCode.DATASET_ROW_INVALID,
        }


def test_a_million_columns_are_refused(tmp_path: Path) -> None:
    """Attack 18"""
    path = json_lines(tmp_path, dict.fromkeys(map(str, range(2000)), 1) | {"text": "a"})
    assert refusal(path).code is FaultCode.DATASET_ROW_INVALID
    path = tmp_path / "data.csv"
    path.write_text("text," + ",".join(map(str, range(2000))) + "\n")
    assert refusal(path).code is FaultCode.DATASET_FILE_INVALID


def test_a_conversation_that_ends_with_a_question_is_cut_at_its_last_answer(
    tmp_path: Path,
) -> None:
    turns = [*ROWS[Format.MESSAGES]["messages"], {"role": "user", "content": "And?"}]
    path = json_lines(tmp_path, {"messages": turns})
    ((_, sample),) = iterate_samples(path, Format.MESSAGES)
    assert isinstance(sample, ChatSample)
    assert [message.content for message in sample.messages] == ["Hi", "Ho"]


def test_a_preference_row_may_repeat_the_prompt_in_both_conversations(tmp_path: Path) -> None:
    prompt = {"role": "user", "content": "Hi"}
    row = {
        "chosen": [prompt, {"role": "assistant", "content": "Ho"}],
        "rejected": [prompt, {"role": "assistant", "content": "No"}],
    }
    expected = list(
        iterate_samples(json_lines(tmp_path, ROWS[Format.PREFERENCE]), Format.PREFERENCE)
    )
    assert list(iterate_samples(json_lines(tmp_path, row), Format.PREFERENCE)) == expected
    assert (
        list(iterate_samples(json_lines(tmp_path, row | {"prompt": "Hi"}), Format.PREFERENCE))
        == expected
    )


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    row = {"messages": [{"role": "wizard", "content": "Abracadabra"}]}
    assert "'wizard'" in refusal(json_lines(tmp_path, row)).message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.txt"])
def test_wide_text_is_refused_with_what_to_do(encoding: str, name: str, tmp_path: Path) -> None:
    """000-18, 000-35: what a spreadsheet saves as "Unicode"."""
    path = tmp_path / name
    path.write_text('{"prompt": "Hi", "completion": "Ho"}\n', encoding=encoding)
    fault = refusal(path, file_name=name)
    assert fault.code is FaultCode.DATASET_FILE_INVALID
    assert "save it as UTF-8" in fault.message


@pytest.mark.parametrize(
    ("label", "desirable"), [("yes", True), ("No", False), (1.0, True), ("0", False)]
)
def test_a_verdict_in_other_words_is_kto(label: object, desirable: bool, tmp_path: Path) -> None:
    """A11"""
    row = {"prompt": "Hi", "completion": "Ho", "label": label}
    assert inspect_file(json_lines(tmp_path, row)).format is Format.KTO
    sample = to_sample(row, Format.KTO, 1)
    assert isinstance(sample, KtoSample)
    assert sample.desirable is desirable


def test_a_label_that_is_no_verdict_is_not_passed_over(tmp_path: Path) -> None:
    """000-18: it could be KTO data or not; whoever knows must say."""
    row = {"prompt": "Hi", "completion": "Ho", "label": "sports"}
    fault = refusal(json_lines(tmp_path, row))
    assert fault.code is FaultCode.DATASET_ROW_INVALID
    assert "'label' is 'sports', neither true nor false" in fault.message
    assert "rename the column" in fault.message
    plain = {"prompt": "Hi", "completion": "Ho", "label": None}
    assert inspect_file(json_lines(tmp_path, plain)).format is Format.PROMPT_COMPLETION


def test_a_verdict_that_is_missing_is_named(tmp_path: Path) -> None:
    """000-16"""
    rows = [{"prompt": "Hi", "completion": "Ho", "label": label} for label in (True, None)]
    fault = refusal(json_lines(tmp_path, *rows))
    assert fault.code is FaultCode.DATASET_FIELD_MISSING
    assert fault.message == "Dataset row 2 missing required field 'label'"
