"""What is said when something that the local stack needs is missing."""

from __future__ import annotations


class SetupRefused(Exception):
    """One sentence on what is missing and one on what to do about it."""

    def __init__(self, sentence: str, *, next_step: str, detail: str = "") -> None:
        """Keep the two sentences apart, so that a table can show them in two columns.

        Args:
            detail: output of the failing program, shown below the sentences.
        """
        super().__init__(sentence)
        self.sentence = sentence
        self.next_step = next_step
        self.detail = detail

    def __str__(self) -> str:
        """Both sentences and, below them, the output that led here."""
        text = f"{self.sentence} {self.next_step}".strip()
        return f"{text}\n{self.detail}" if self.detail else text
