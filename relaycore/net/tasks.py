"""Small helpers around nurseries and deadlines, for every room that has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from ..errors import ConnectionLost

__all__ = ["alone", "bounded", "leaves"]

_Error = TypeVar("_Error", bound=BaseException)


@contextmanager
def alone() -> Iterator[None]:
    """Let a single exception out of a nursery as it was, without the group around it.

    For nurseries whose tasks raise nothing but what went wrong once, and cancellations that follow from it: whoever
    uses such an ``async with`` block need not know that there is a nursery inside. Two errors stay a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [error for error in leaves(group) if not isinstance(error, trio.Cancelled)]
        if len(errors) != 1:
            raise
        raise errors[0] from errors[0].__cause__


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """A deadline whose passing counts as a lost connection.

    Raises:
      ConnectionLost: the block took longer.
    """
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise ConnectionLost(f"no answer within {seconds:g} s") from error


def leaves(group: BaseExceptionGroup[_Error]) -> Iterator[_Error]:
    """Yield the exceptions of a group and of the groups in it, in order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
