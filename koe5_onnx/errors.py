"""The errors and warnings of koe5-onnx, and nothing else.

Every error is a `Koe5Error` and also the builtin error that a caller would expect::

    Koe5Error(Exception)
    ├── InputError(ValueError)               a text, an argument or an input file that cannot be used
    │   └── TextTooLongError                 a text above the token limit where overflow="error"
    ├── ArtifactError(ValueError)            an exported folder that is missing, damaged or of another format
    ├── CheckpointError(ValueError)          a PyTorch-side checkpoint that cannot be exported
    ├── FidelityError(ValueError)            an export farther from PyTorch than its gate allows
    ├── ProviderError(RuntimeError)          the device asked for cannot run the artifact
    │   └── OutOfMemoryError                 a batch does not fit into the device's memory
    ├── HubError(OSError)                    a repository that cannot be fetched
    └── MissingDependencyError(ImportError)  an extra that is not installed

    Koe5Warning(UserWarning)
    ├── TruncationWarning                    texts were cut at the token limit
    ├── DoublePromptWarning                  texts already start with the prompt they are given
    ├── CheckpointWarning                    a checkpoint has settings to look at before it is used
    ├── UnsuitedCpuWarning                   an artifact on a CPU that it is not made for
    ├── SmallerBatchWarning                  the device's memory was too small: batches are halved
    └── SharedWeightsWarning                 packed weights cannot be shared: the process holds its own
"""

from __future__ import annotations


class Koe5Error(Exception):
    """Root of all errors raised on purpose by koe5-onnx."""


class InputError(Koe5Error, ValueError):
    """A text, an argument or an input file that cannot be used."""


class TextTooLongError(InputError):
    """A text has more tokens than the artifact takes and `overflow="error"`."""


class ArtifactError(Koe5Error, ValueError):
    """An exported folder is missing, damaged or of another format version."""


class CheckpointError(Koe5Error, ValueError):
    """A checkpoint cannot be exported."""


class FidelityError(Koe5Error, ValueError):
    """An artifact is farther from the PyTorch reference than its gate allows."""


class ProviderError(Koe5Error, RuntimeError):
    """The device asked for cannot run the artifact."""


class OutOfMemoryError(ProviderError):
    """A batch does not fit into the device's memory."""


class HubError(Koe5Error, OSError):
    """A repository cannot be fetched from the Hub."""


class MissingDependencyError(Koe5Error, ImportError):
    """A package of an extra is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Name the missing `package`, the `extra` that brings it and the `purpose` it serves."""
        super().__init__(f"{purpose} needs the package {package}: pip install 'koe5-onnx[{extra}]'")
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        """Pickle by the arguments: a process pool cannot bring back an error that it cannot rebuild."""
        return type(self), self._arguments


class Koe5Warning(UserWarning):
    """Root of all warnings of koe5-onnx."""


class TruncationWarning(Koe5Warning):
    """Texts were cut at the token limit."""


class DoublePromptWarning(Koe5Warning):
    """Texts already start with the prompt they are about to be given."""


class CheckpointWarning(Koe5Warning):
    """A checkpoint has settings that are unknown, or that its user should look at."""


class UnsuitedCpuWarning(Koe5Warning):
    """The CPU lacks the instructions that the artifact is made for."""


class SmallerBatchWarning(Koe5Warning):
    """A batch did not fit into the device's memory: it and those behind it run in halves."""


class SharedWeightsWarning(Koe5Warning):
    """Packed weights cannot be kept where processes share them: this one holds a copy of its own."""
