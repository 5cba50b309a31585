# SPDX-License-Identifier: Apache-2.0
"""How far long work has come: as a bar of tqdm's, told to a function, or not at all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from reco.types import Progress

__all__ = ["Reporter"]


def _is_watched() -> bool:
    """Whether somebody sees standard error; a log file is better off without bars."""
    return sys.stderr.isatty() or _is_notebook()


def _is_notebook() -> bool:
    """Whether this process is a notebook's kernel; others may have imported one's packages."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    return hasattr(shell, "kernel")


class Reporter:
    """What a `progress` argument means, as one object; a context manager that takes its bar away at the end.

    Parameters
    ----------
    progress : bool or callable, optional
        True for a bar on standard error, where that is a terminal or a notebook; False or None for nothing; or called
        with (items done, items in all), returning False stops the work with an Error.
    description : str
        What is done, before the bar.
    unit : str
        What is counted, with a space before it: " images".
    total : int, optional
        Items in all, where it is known before the first report.
    initial : int
        Items that were done before, by a call that was interrupted.

    Raises
    ------
    TypeError
        For a progress that is neither.
    """

    def __init__(
        self, progress: Progress, description: str, unit: str, total: int | None = None, initial: int = 0
    ) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress must be True, False, None or a function of (done, total), got {progress!r}")
        self._tell = progress if callable(progress) else None
        self._done = initial
        self._total = total
        quiet = progress is not True or not _is_watched()
        self._bar: Any = tqdm(total=total, initial=initial, desc=description, unit=unit, disable=quiet, leave=False)

    def __call__(self, done: int, total: int) -> bool:
        """Say how far the work is.

        Parameters
        ----------
        done, total : int
            Items done, and items in all.

        Returns
        -------
        bool
            False to stop.
        """
        self.total = total
        self._bar.update(done - self._done)
        self._done = done
        answer = self._tell(done, total) if self._tell else None
        return answer is None or bool(answer)

    def update(self, more: int) -> None:
        """Say that more items are done, in work that knows its total at its beginning or not at all.

        Parameters
        ----------
        more : int
            Since the last report.

        Raises
        ------
        Error
            When the function stops the work.
        """
        done = self._done + more
        total = max(done, self._total or 0)
        self._bar.update(more)
        self._done = done
        answer = self._tell(done, total) if self._tell else None
        if answer is not None and not answer:
            from reco._core import Error

            raise Error(f"[interrupted] stopped after {done} of {total}")

    @property
    def total(self) -> int | None:
        """Items in all, None as long as nobody knows; may be set."""
        return self._total

    @total.setter
    def total(self, total: int | None) -> None:
        self._total = self._bar.total = total

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.close()
