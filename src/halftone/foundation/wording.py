"""Lists of names in messages: the first few, and how many more there are."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first ``most`` of ``names`` with commas between them, and the number of the others.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
