"""Whether the sizes of matrix products suit tensor cores."""

from collections.abc import Iterator, Sequence

import keras

from keras_mp import dtypes, private
from keras_mp.lint.finding import Finding
from keras_mp.lint.products import pad, products_of
from keras_mp.lint.sensitive import inside_guarded


def find(
    model: keras.Model,
    located: Sequence[tuple[keras.layers.Layer, str]],
    batch_size: int | None,
) -> Iterator[Finding]:
    """Yield findings on sizes of products that tensor cores pad."""
    inside = inside_guarded(located)
    multiples = []
    for layer, path in located:
        multiple = None if id(layer) in inside else _multiple(layer)
        products = list(products_of(layer)) if layer.built else []
        if multiple and products:
            multiples.append(multiple)
            sizes = {name: size for product in products for name, size in product.sizes}
            padded = sum(product.multiplications(multiple) for product in products)
            cost = padded / sum(product.multiplications() for product in products)
            yield from _misaligned(path, sizes, multiple, cost)
    if batch_size is not None and multiples:
        multiple = max(multiples)
        cost = pad(batch_size, multiple) / batch_size
        yield from _misaligned(model.name, {"batch size": batch_size}, multiple, cost)


def _misaligned(path, sizes, multiple, cost):
    wrong = {name: size for name, size in sizes.items() if size % multiple}
    if wrong:
        now = ", ".join(f"{name} {size}" for name, size in wrong.items())
        then = ", ".join(f"{name} {pad(n, multiple)}" for name, n in wrong.items())
        yield Finding(
            "note",
            "alignment",
            path,
            f"{now}: not a multiple of {multiple}, by which tensor cores go",
            f"padded to {then} it takes {100 * (cost - 1):.1f} % more multiplications",
        )


def _multiple(layer):
    """Return what sizes have to be multiples of; None if no tensor core computes it."""
    modes = {inner.quantization_mode for inner in private.layers.walk(layer)}
    if modes - {None, "float8"}:
        return None
    if "float8" in modes:
        return 16
    return 8 if dtypes.computes_low(layer) else None
