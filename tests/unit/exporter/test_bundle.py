"""The texts of a bundle say what runtimes need, and nothing that a shell could stumble over."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain import bundle
from exporter.domain.bundle import BundleFacts
from exporter.domain.gates import Closeness, Figures
from exporter.domain.quantization import Quantization
from exporter.domain.template_probes import GROUPS, Probed
from lexicon.names import ollama_name

FACTS = BundleFacts(
    ollama_name="anvil-3m-1a2b",
    base_model="tunesmith/anvil-3m",
    run="projects/local/runs/run-1a2b",
    quantization=Quantization.Q4_K_M,
    template="{{ .System }}",
    outcomes=dict.fromkeys((group.key for group in GROUPS), Probed.EQUAL),
    stops=("<|im_end|>", 'a"b'),
    context_tokens=32_768,
    generation={"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True},
    figures=None,
)
FIGURES = Figures(
    adapter=Closeness(mean_kl=0.01, top1_agreement=0.98),
    base=Closeness(mean_kl=1.5, top1_agreement=0.3),
    separation_kl=1.4,
    loss=1.02,
    adapter_loss=1.0,
    token_count=321,
)


def test_the_modelfile_holds_template_stops_and_sampling() -> None:
    assert bundle.modelfile(FACTS) == (
        "FROM ./model.gguf\n\n"
        'TEMPLATE """{{ .System }}"""\n\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "a"b"\n'
        "PARAMETER temperature 0.7\n"
        "PARAMETER top_k 20\n"
        "PARAMETER repeat_penalty 1.05\n"
        "PARAMETER num_ctx 8192\n"
    )


def test_a_greedy_base_stays_greedy() -> None:
    assert bundle.sampling_lines({"do_sample": False, "temperature": 0.7}) == [
        "PARAMETER temperature 0"
    ]


def test_settings_that_are_no_numbers_are_left_out() -> None:
    assert bundle.sampling_lines({"temperature": "hot", "top_k": True, "top_p": None}) == []
    # What Python's JSON reads of 1e999, NaN and a number of a thousand digits.
    numbers = {"top_k": float("inf"), "temperature": float("nan"), "top_p": 10**1000}
    assert bundle.sampling_lines(numbers) == []


def with_outcomes(**outcomes: Probed) -> BundleFacts:
    return replace(FACTS, outcomes={**FACTS.outcomes, **outcomes})


def test_without_a_template_the_readme_says_why_and_what_to_use() -> None:
    facts = with_outcomes(
        thoughts_in_history=Probed.DIFFERENT, second_system_message=Probed.DIFFERENT
    )
    facts = replace(facts, template=None)
    assert "TEMPLATE" not in bundle.modelfile(facts)
    shown = bundle.readme(facts)
    assert "no TEMPLATE, since none was found that prints the same for:" in shown
    assert "- thoughts (`<think>`) inside earlier answers\n" in shown
    assert "--jinja" in shown
    # What no TEMPLATE has to carry is no reason, and nothing is said to be the same.
    assert "second system" not in shown
    assert "carries the same" not in shown


def test_a_template_that_could_not_be_made_has_a_reason_too() -> None:
    facts = replace(FACTS, template=None, outcomes={"plain_turns": Probed.DIFFERENT})
    assert "prints the same for:\n\n- plain turns\n" in bundle.readme(facts)


def test_the_readme_says_what_the_template_carries_and_what_not() -> None:
    facts = with_outcomes(
        tool_definitions=Probed.DIFFERENT,
        tool_turns=Probed.DIFFERENT,
        late_system_message=Probed.NOT_PROBED,
    )
    carried, _, rest = bundle.readme(facts).partition("It does not carry:")
    lacking, _, untold = rest.partition("Not compared")
    untold = untold.partition("## Proof")[0]
    assert "carries the same for:\n\n- plain turns\n" in carried
    assert "- definitions of tools\n- calls of tools and their results\n" in lacking
    assert "- a system message after the first message\n" in untold
    for group in GROUPS:
        said = [group.words in part for part in (carried, lacking, untold)]
        assert said.count(True) == 1


def test_what_is_all_equal_leaves_nothing_to_name() -> None:
    shown = bundle.readme(FACTS)
    assert "It does not carry" not in shown
    assert "Not compared" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Qwen/Qwen3-8B", "`Qwen/Qwen3-8B`"),
        ("a|b", r"`a\|b`"),
        ("a\\|b", r"`a\\|b`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("a\nb\r\n|c", "`a\ufffdb\ufffd\ufffd\\|c`"),
        ("\x1b[31m\u202egnp", "`\ufffd[31m\ufffdgnp`"),
        ("", "–"),
        (" ", "–"),
        ("<img src=x>", "`<img src=x>`"),
    ],
)
def test_any_name_stays_in_its_cell(text: str, shown: str) -> None:
    assert bundle.code_cell(text) == shown


NAMES = st.text(st.sampled_from("ab/.-_|`\\\n\r\t\"'$()%&;<>!^ é\x00\x1b\u2028"), max_size=120)


@given(base=NAMES, run=NAMES)
def test_no_name_breaks_out_of_the_texts(base: str, run: str) -> None:
    """Whatever a model or a run is called, scripts and Modelfile see letters, digits, `-`, `.`."""
    name = ollama_name(base, run)
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,79}", name)
    assert not name.endswith(("-", "."))
    facts = replace(FACTS, ollama_name=name, base_model=base, run=run)
    plain = replace(FACTS, ollama_name="a-name")
    for made in (bundle.install_sh, bundle.install_bat, bundle.modelfile):
        assert made(facts) == made(plain).replace("a-name", name)
    rows = bundle.readme(facts).splitlines()
    assert len(rows) == len(bundle.readme(plain).splitlines())
    for row in (row for row in rows if row.startswith("| ")):
        assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_a_name_that_a_shell_would_read_is_a_mistake() -> None:
    for name in ("a b", "$(id)", "A", "", "-x", "a\n", "a" * 81):
        with pytest.raises(AssertionError):
            replace(FACTS, ollama_name=name)


def test_the_readme_shows_the_proof() -> None:
    shown = bundle.readme(replace(FACTS, figures=FIGURES))
    for figure in ("98.0%", "0.0100 nats", "321 tokens", "+0.0200"):
        assert figure in shown


def test_stop_words_come_from_the_end_of_an_answer() -> None:
    found = bundle.stop_words(
        assistant_end="<|im_end|>\n",
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        end_tokens=["<|endoftext|>", ""],
    )
    assert found == ["<|im_end|>", "<|endoftext|>"]


def test_windows_gets_its_line_ends() -> None:
    script = bundle.install_bat(FACTS)
    assert script.count("\n") == script.count("\r\n") > 10


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell on this machine")
def test_the_install_script_registers_the_model_under_its_name(tmp_path: Path) -> None:
    """001-37: run as a user runs it, with a stand-in for Ollama that notes its arguments."""
    (tmp_path / "a bundle").mkdir()
    script = tmp_path / "a bundle" / "install.sh"
    script.write_text(bundle.install_sh(FACTS))
    ollama = tmp_path / "ollama"
    ollama.write_text(f'#!/bin/sh\necho "$PWD $*" >> "{tmp_path}/calls"\n')
    ollama.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    for arguments in ([], ["mine"]):
        subprocess.run(["sh", str(script), *arguments], check=True, env={"PATH": path}, timeout=10)
    calls = (tmp_path / "calls").read_text().splitlines()
    folder = script.parent
    assert [call for call in calls if "create" in call] == [
        f"{folder} create anvil-3m-1a2b -f Modelfile",
        f"{folder} create mine -f Modelfile",
    ]


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell on this machine")
def test_the_install_script_says_what_is_missing(tmp_path: Path) -> None:
    script = tmp_path / "install.sh"
    script.write_text(bundle.install_sh(FACTS))
    done = subprocess.run(
        ["/bin/sh", str(script)],
        check=False,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 1
    assert "ollama was not found" in done.stderr
