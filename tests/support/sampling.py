"""A tokenizer of numbers and a clock that leaps, for samples of models of random weights."""


class Words:
    """A tokenizer whose every token is its number."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens, "raw template tokens must be seen"
        return " ".join("<|im_start|>" if one == 9 else str(one) for one in ids)


class Leaping:
    """A clock on which hours pass before each asking, and none while it lasts."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.looks // 2 * 3600.0
