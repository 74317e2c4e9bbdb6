"""Where each entry of the precision lists comes from."""

import enum
from collections.abc import Hashable, Iterable, Mapping
from types import ModuleType
from typing import Any


class Source(enum.Enum):
    """Why something is on a list."""

    TORCH = (
        "PyTorch's autocast (`torch.amp`, `autocast_mode.h`): the operation that it "
        "computes by is on the list of those for lower precision or for float32"
    )
    TENSORFLOW = (
        "TensorFlow's graph rewrite (`auto_mixed_precision_lists.h`): the operation "
        "that it computes by is on its deny list; or, of layers that follow, on its "
        "clear or infer list"
    )
    COMPOSED = (
        "it is computed by sums, powers or exponentials, which are on those lists"
    )
    MEASURED = "it fails with Keras alone in 16 bits: see docs/conformance.md"
    KERAS = "Keras's documentation says what it takes and does"


#: The source of each entry; of one on several lists, the source of the first.
SOURCES: dict[Hashable, Source] = {}


def listed(
    module: ModuleType | None, names: Mapping[Source, Iterable[str]]
) -> tuple[Any, ...]:
    """Return the entries of a list, and note where they come from.

    Args:
        module: A module of Keras's that has the entries; not every Keras has all. None
            for a list of names.
        names: The names of the entries, by source.
    """
    sources = {}
    for source, group in names.items():
        found = (
            each if module is None else getattr(module, each, None) for each in group
        )
        sources |= {entry: source for entry in found if entry is not None}
    return listed_rules(sources)


def listed_rules(sources: Mapping[Any, Source]) -> tuple[Any, ...]:
    """Return the entries of a list that are given with their sources; note these."""
    for entry, source in sources.items():
        SOURCES.setdefault(entry, source)
    return tuple(sources)
