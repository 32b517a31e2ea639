"""Results that a person would want to look at before trusting them, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

FAR = 0.1  # accuracy on test images this much from that on selection
FEW = 3  # trials whose spread says nothing


def doubts(
    trained: Mapping[str, float],
    classes: int,
    selection: float | None,
    test: float,
    values: Sequence[float] = (),
    images: int = 0,
) -> Iterator[str]:
    """Yield a line for each result that is to be doubted.

    `trained` are mean accuracies on test images of what was trained, by name; `selection` and `test` are the best
    model's; `values` are those of the complete trials on as many selection `images`, if they were searched for.
    """
    for name, accuracy in trained.items():
        if accuracy < 2 / classes:
            yield f"{name}: mean accuracy {accuracy:.2%}, below twice chance ({1 / classes:.2%}): it did not train"
    if selection is not None and abs(selection - test) > FAR:
        yield f"the best model has {selection:.2%} on selection and {test:.2%} on test: they are far apart"
    if len(values) >= FEW and images:
        best = max(values)
        noise = 2 * math.sqrt(best * (1 - best) / images) if 0 <= best <= 1 else 0.0
        if best - min(values) < noise:
            yield (
                f"all {len(values)} trials are within {noise:.2%}, the noise of {images} selection images: "
                "the best may not be the best"
            )
