"""Prompts: texts that a model expects before each query and each passage.

As in sentence-transformers, `prompt_name` is a name in the artifact's contract ("query") and `prompt` is the
text itself ("query: ").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from koe5_onnx.artifact import Contract
from koe5_onnx.errors import DoublePromptWarning, InputError, Koe5Warning

Warn = Callable[[type[Koe5Warning], str], None]


def prompt_text(contract: Contract, prompt_name: str | None, prompt: str | None) -> str:
    """Return the prompt text. If neither argument is given, use the contract's default prompt.

    Raises:
        InputError: Both arguments are given, or the contract has no prompt of that name.
    """
    if prompt is not None:
        if prompt_name is not None:
            raise InputError(
                f"prompt_name is {prompt_name!r} and prompt is {prompt!r}. Pass only one of them"
            )
        return prompt
    name = contract.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in contract.prompts:
        raise InputError(
            f"prompt_name is {name!r}: expected one of {sorted(contract.prompts)}. "
            "Pass prompt=... to use another text"
        )
    return contract.prompts[name]


def count_doubled(texts: Sequence[str], prompt: str, prompts: Iterable[str]) -> int:
    """Count the texts to which `prompt` is added although they begin with a prompt.

    Args:
        texts: Texts before `prompt` is added.
        prompt: Prompt that is added; if it is "", the result is 0.
        prompts: All prompts of the contract. Spaces at their ends are ignored.
    """
    known = tuple(filter(None, map(str.strip, {prompt, *prompts})))
    return sum(text.lstrip().startswith(known) for text in texts) if prompt else 0


def put_in_front(prompt: str, texts: Sequence[str], warn: Warn) -> Sequence[str]:
    """Prepend the prompt to each text, and warn if texts already start with it.

    Raises:
        TypeError: `texts` is a single str.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a str: expected a sequence of texts, such as [text]")
    if not prompt:
        return texts
    if double := sum(isinstance(text, str) and text.startswith(prompt) for text in texts):
        warn(
            DoublePromptWarning,
            f"{double} of {len(texts)} texts already start with {prompt!r}, and the prompt is added again. "
            'Pass texts without the prompt, or pass prompt=""',
        )
    return [prompt + text if isinstance(text, str) else text for text in texts]
