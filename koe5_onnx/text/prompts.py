"""Prompts: the text that a model expects in front of each query and each passage.

The two arguments are those of sentence-transformers: `prompt_name` is a name in the artifact's contract
("query"), `prompt` is the text itself ("query: ").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from koe5_onnx.artifact import Contract
from koe5_onnx.errors import DoublePromptWarning, InputError, Koe5Warning

Warn = Callable[[type[Koe5Warning], str], None]


def prompt_text(contract: Contract, prompt_name: str | None, prompt: str | None) -> str:
    """Return the text to put in front; without a name and a text, that of the contract's default.

    Raises:
        InputError: Both are given, or the contract does not have the name.
    """
    if prompt is not None:
        if prompt_name is not None:
            raise InputError(f"prompt_name is {prompt_name!r} and prompt is {prompt!r}: pass one of the two")
        return prompt
    name = contract.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in contract.prompts:
        raise InputError(
            f"prompt_name is {name!r}: expected one of {sorted(contract.prompts)}. "
            "Pass prompt= for a text of your own"
        )
    return contract.prompts[name]


def put_in_front(prompt: str, texts: Sequence[str], warn: Warn) -> Sequence[str]:
    """Return the texts with the prompt in front, and warn about those that already start with it.

    Raises:
        TypeError: `texts` is one bare str.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one str: expected a sequence of texts, as [text]")
    if not prompt:
        return texts
    if double := sum(isinstance(text, str) and text.startswith(prompt) for text in texts):
        warn(
            DoublePromptWarning,
            f"{double} of {len(texts)} texts already start with {prompt!r} and get it a second time: "
            'pass the plain text, or prompt=""',
        )
    return [prompt + text if isinstance(text, str) else text for text in texts]
