"""The tree in the docstring of errors.py matches the classes, and the public names are exact."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

import koe5_onnx
from koe5_onnx import errors

ERROR_CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
}


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Parse the tree in the docstring. Return the names of each class's bases: the parent and the builtin."""
    tree: dict[str, tuple[str, ...]] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"[ │├└─]*([A-Z]\w+)(?:\((\w+)\))?(?:  |$)", line)
        if match is None:
            continue
        while above and above[-1][0] >= match.start(1):
            above.pop()
        bases = ([above[-1][1]] if above else []) + ([match[2]] if match[2] else [])
        tree[match[1]] = tuple(bases)
        above.append((match.start(1), match[1]))
    return tree


def test_docstring_draws_every_class_with_its_bases():
    bases = {name: tuple(base.__name__ for base in kind.__bases__) for name, kind in ERROR_CLASSES.items()}
    assert drawn_tree() == bases


@pytest.mark.parametrize("name", sorted(set(ERROR_CLASSES) - {"Koe5Error", "Koe5Warning"}))
def test_every_error_can_be_caught_as_ours_and_as_a_builtin(name):
    kind = ERROR_CLASSES[name]
    assert issubclass(kind, errors.Koe5Error | errors.Koe5Warning)
    builtin_bases = [base for base in kind.__mro__ if base.__module__ == builtins.__name__]
    assert builtin_bases[0] not in (Exception, BaseException, object)


@pytest.mark.parametrize("name", sorted(ERROR_CLASSES))
def test_errors_survive_pickling(name):
    """Process pools pickle errors to return them."""
    if name == "MissingDependencyError":
        error = errors.MissingDependencyError("torch", "reference", "verifying")
    else:
        error = ERROR_CLASSES[name]("message")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_missing_dependency_names_the_package_and_the_extra():
    message = str(errors.MissingDependencyError("torch", "reference", "verifying"))
    assert (
        message
        == "verifying requires the package torch. Run pip install '.[reference]' in a clone of koe5-onnx"
    )


def test_all_is_sorted_and_exactly_the_public_names():
    public = {
        name
        for name, value in vars(koe5_onnx).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert koe5_onnx.__all__ == sorted(public)


def test_every_error_is_public():
    assert set(ERROR_CLASSES) <= set(koe5_onnx.__all__)
