"""Errors and warnings of koe5-onnx.

Every error below derives from `Koe5Error` and from a matching builtin error::

    Koe5Error(Exception)
    ├── InputError(ValueError)               invalid text, argument, option or input file
    │   └── TextTooLongError                 text above the token limit with overflow="error"
    ├── ArtifactError(ValueError)            artifact missing, damaged or incompatible
    ├── CheckpointError(ValueError)          PyTorch checkpoint cannot be exported
    ├── FidelityError(ValueError)            measurements of an artifact outside their bounds
    ├── ProviderError(RuntimeError)          artifact cannot run, or Embedder closed
    │   └── OutOfMemoryError                 batch does not fit into device memory
    ├── HubError(OSError)                    files cannot be downloaded or uploaded
    └── MissingDependencyError(ImportError)  optional dependency not installed

    Koe5Warning(UserWarning)
    ├── TruncationWarning                    texts truncated at the token limit
    ├── DoublePromptWarning                  texts already start with the prompt
    ├── CheckpointWarning                    checkpoint has settings that need a review
    ├── UnsuitedCpuWarning                   artifact is intended for other CPUs
    ├── SmallerBatchWarning                  device memory too small, batches split in half
    └── SharedWeightsWarning                 packed weights not shared, process keeps a private copy
"""

from __future__ import annotations


class Koe5Error(Exception):
    """Base class of all koe5-onnx errors."""


class InputError(Koe5Error, ValueError):
    """A text, an argument, an option or an input file is invalid."""


class TextTooLongError(InputError):
    """A text exceeds the artifact's token limit and `overflow="error"` is set."""


class ArtifactError(Koe5Error, ValueError):
    """An artifact is missing, damaged, or incompatible with the installed koe5-onnx or tokenizers."""


class CheckpointError(Koe5Error, ValueError):
    """A checkpoint cannot be exported."""


class FidelityError(Koe5Error, ValueError):
    """A measurement of an artifact, such as the cosine to the PyTorch reference, is outside its bound."""


class ProviderError(Koe5Error, RuntimeError):
    """The artifact cannot run with the requested device or graph, or the Embedder is closed."""


class OutOfMemoryError(ProviderError):
    """A batch does not fit into device memory."""


class HubError(Koe5Error, OSError):
    """Files cannot be downloaded or uploaded."""


class MissingDependencyError(Koe5Error, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        """Create the error message.

        Args:
            package: Missing package.
            extra: Extra of koe5-onnx that installs it; None if there is none.
            purpose: Operation that requires it, such as "exporting".
        """
        install = package if extra is None else f"'.[{extra}]' in a clone of koe5-onnx"
        super().__init__(f"{purpose} requires the package {package}. Run pip install {install}")
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str | None, str]]:
        """Pickle the constructor arguments, so that process pools can return this error."""
        return type(self), self._arguments


class Koe5Warning(UserWarning):
    """Base class of all koe5-onnx warnings."""


class TruncationWarning(Koe5Warning):
    """Texts were truncated at the token limit."""


class DoublePromptWarning(Koe5Warning):
    """Texts already start with the prompt that is added to them."""


class CheckpointWarning(Koe5Warning):
    """A checkpoint has unknown settings, or settings that its user should review."""


class UnsuitedCpuWarning(Koe5Warning):
    """The CPU has none of the instruction sets with which the artifact is fast."""


class SmallerBatchWarning(Koe5Warning):
    """A batch did not fit into device memory, so this batch and all later ones are split in half."""


class SharedWeightsWarning(Koe5Warning):
    """Packed weights cannot be shared between processes, so this process keeps a private copy."""
