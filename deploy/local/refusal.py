"""The error for a missing requirement of the local stack."""

from __future__ import annotations


class SetupRefused(Exception):
    """One sentence about the missing requirement and one with the next step."""

    def __init__(self, sentence: str, *, next_step: str, detail: str = "") -> None:
        """Store the two sentences separately, so that a table can show them in two columns.

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
