"""What a compiled program communicates: its collectives, counted in XLA's own text of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# `%name = SHAPE KIND(operands), attributes`. A collective that runs beside others is written twice,
# as KIND-start and KIND-done: the start is counted.
_INSTRUCTION = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<sizes>[\d,]*)\]")
# Who communicates with whom is written in one of three ways: every group, {{0,1},{2,3}}; their
# number and size, [2,2]<=[4]; or axes of a mesh, mesh['a'=2,'b'=2] {'b'}.
_GROUPS = re.compile(r"replica_groups=(?:\{\{(?P<listed>[\d,]*)\}|\[\d+,(?P<size>\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[(?P<mesh>[^]]*)\][^{]*\{(?P<over>[^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in a program."""

    count: int
    # Of the arrays that are communicated, whole: what an all-reduce sums, what an all-gather
    # yields, what a reduce-scatter takes. A ring of n devices sends (n - 1) / n of it from each,
    # an all-reduce twice that.
    bytes: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.count + other.count, self.bytes + other.bytes)


def count_collectives(text: str) -> Mapping[str, Traffic]:
    """Counts the collectives in a compiled program's text (`compiled.as_text()`), by kind.

    What lies in the body of a loop is counted once, however often it runs; a group of one device,
    which sends nothing, is not counted. On CPU XLA writes a reduce-scatter as an all-reduce of
    which each device keeps its part.
    """
    found: dict[str, Traffic] = {}
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        group = _group_size(line)
        if group == 1:
            continue
        kind = match["kind"]
        size = _bytes(match["shape"], kind, started=match["start"] is not None)
        if kind == "reduce-scatter":
            size *= group or 1
        found[kind] = found.get(kind, Traffic(0, 0)) + Traffic(1, size)
    return found


def _group_size(line: str) -> int | None:
    """Reads how many devices communicate; None where the text leaves it to all of them."""
    if match := _MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match["mesh"]))
        # Of an axis it may be a part, 'a':(1)2, whose size comes last.
        over = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match["over"])
        return math.prod(int(part or sizes[name]) for name, part in over)
    if match := _GROUPS.search(line):
        return int(match["size"]) if match["size"] else len(match["listed"].split(","))
    return None


def _bytes(shape: str, kind: str, *, started: bool) -> int:
    arrays = [_array_bytes(m["type"], m["sizes"]) for m in _ARRAY.finditer(shape)]
    if started and kind == "collective-permute":
        return arrays[1]  # operand, result, and two contexts
    if started and kind != "all-reduce":
        return sum(arrays[len(arrays) // 2 :])  # the operands, then the results
    return sum(arrays)


def _array_bytes(type_: str, sizes: str) -> int:
    bits = 8 if type_ == "pred" else int(re.findall(r"\d+", type_)[0])
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
