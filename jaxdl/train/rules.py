"""Which axis of which parameter is split over which axis of the mesh.

Models know nothing of this: a rule names parameters by their paths, and is kept beside the model.
Nothing here touches a device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from jax.sharding import PartitionSpec

from jaxdl.errors import UserError

# A regular expression, searched for in a parameter's path (`block1/attention/query/kernel`), and
# how that parameter is split. The first rule that matches decides; axes left out stay whole.
Rule = tuple[str, PartitionSpec]
Shape = tuple[int, ...]

# Tensor parallelism of attention and of MLP blocks (Shoeybi et al. 2019, arXiv:1909.08053): the
# first product of a block is split by its output (heads, or hidden units), the second by its
# input, so that a block sums over the devices once, at its end. The kernels are (d, n, k) or
# (d, n k), then (n, k, d) or (n k, d); a bias is split as the output that it is added to.
TRANSFORMER: tuple[Rule, ...] = (
    (r"(^|/)(query|key|value|up|gate)/kernel$", PartitionSpec(None, "tensor")),
    (r"(^|/)((query|key|value|up|gate)/bias|(out|down)/kernel)$", PartitionSpec("tensor")),
)

# Where the parameters of a scanned `jaxdl.layers.block.Stack` are. Rules are of one layer, and the
# axis of layers before its own stays whole.
STACKED = r"(^|/)blocks/"

# Elements from which FSDP splits a parameter. Gathering a smaller one takes as long as a message
# takes to arrive, and saves less than 256 KiB.
LARGE = 2**16


def split_parameters(
    shapes: Mapping[str, Shape],
    rules: Sequence[Rule],
    sizes: Mapping[str, int],
    *,
    large: int = LARGE,
) -> dict[str, PartitionSpec]:
    """Gives each parameter, by path, its split over a mesh of these sizes.

    The first rule that matches decides, for one layer even where layers are stacked (`STACKED`);
    after that, FSDP splits each parameter of `large` or more elements along one axis that is still
    whole.

    Raises ValueError where a rule decides nothing, and UserError where one does not divide.
    """
    unused = [pattern for pattern, _ in rules]
    specs = {}
    for path, shape in shapes.items():
        spec = PartitionSpec()
        for pattern, candidate in rules:
            if re.search(pattern, path):
                layers = (None,) if re.search(STACKED, path) else ()
                spec = _fitting(path, shape, PartitionSpec(*layers, *candidate), sizes)
                unused = [name for name in unused if name != pattern]
                break
        specs[path] = fully_shard(shape, spec, sizes, large=large)
    if unused:
        raise ValueError(f"sharding rule {unused[0]!r} decides on none of {', '.join(shapes)}")
    return specs


def fully_shard(
    shape: Shape, spec: PartitionSpec, sizes: Mapping[str, int], *, large: int = LARGE
) -> PartitionSpec:
    """Splits the best axis that `spec` leaves whole over `fsdp`; small arrays stay as they are.

    The best is the largest that divides, of equal ones the last: its parts lie together in memory
    on TPU, whose tiles are of the last two axes.
    """
    devices = sizes["fsdp"]
    axes = [*spec, *[None] * (len(shape) - len(spec))]
    if devices == 1 or math.prod(shape) < large or "fsdp" in _names(axes):
        return spec
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % devices == 0]
    if not free:
        return spec
    axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*axes)


def follow(path: str, shape: Shape, parameters: Mapping[str, Shape]) -> str | None:
    """Finds the parameter that an optimiser's slot, or an average, belongs to.

    It is the one that the slot's path ends with and whose shape it has, of several the longest:
    `opt_state/0/mu/conv1/kernel` belongs to `conv1/kernel`. None where there is none.
    """
    parts = path.split("/")
    tails = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((tail for tail in tails if parameters.get(tail) == shape), None)


def without(spec: Iterable, name: str) -> list:
    """Leaves one axis of the mesh out of a split."""
    kept = [tuple(other for other in _names([axis]) if other != name) for axis in spec]
    return [axis[0] if len(axis) == 1 else axis or None for axis in kept]


def _fitting(
    path: str, shape: Shape, spec: PartitionSpec, sizes: Mapping[str, int]
) -> PartitionSpec:
    """Leaves out of a rule's split the axes that this mesh has one device along."""
    if len(spec) > len(shape):
        raise ValueError(f"a sharding rule splits {path} along {spec}; it has {len(shape)} axes")
    axes = []
    for size, axis in zip(shape, spec, strict=False):
        names = tuple(name for name in _names([axis]) if sizes[name] > 1)
        parts = math.prod(sizes[name] for name in names)
        if size % parts:
            raise UserError(
                f"--mesh: {path} {shape} has an axis of {size}, which does not split over"
                f" {'x'.join(names)}={parts}"
            )
        axes.append(names[0] if len(names) == 1 else names or None)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _names(spec: Iterable) -> list[str]:
    """Lists the mesh axes that a split uses."""
    axes = [(axis,) if isinstance(axis, str) else axis or () for axis in spec]
    return [name for axis in axes for name in axis]
