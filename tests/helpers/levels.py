"""Levels of CPU kernels."""

import contextlib

import pytest

from splip import _C


@contextlib.contextmanager
def kernels(name):
    """Run with one level of CPU kernels; skip what this machine cannot run."""
    before = _C.isa()
    try:
        _C.set_isa(name)
    except ValueError:
        pytest.skip(f"this processor cannot run the {name} kernels")
    try:
        yield
    finally:
        _C.set_isa(before)
