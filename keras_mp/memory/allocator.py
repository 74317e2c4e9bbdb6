"""A model of TensorFlow's allocator: how much memory it takes to hold live buffers.

That is more than the buffers themselves: free blocks that are too small for any request
are taken too. A buffer counts its uses and is freed after the last one. The heap
remembers its peak.
"""

import bisect
import collections

#: TensorFlow's first region on a device, in bytes; each one after it is twice as large.
FIRST_REGION = 2**21

#: On a CPU with oneDNN, smaller tensors are allocated by malloc.
SMALLEST_ON_CPU = 2**18


def measured_by() -> str | None:
    """Return which size of the allocator is measured: "in use", "resident" or None.

    On a GPU, TensorFlow's best-fit allocator (BFC) counts the bytes in use. On a CPU,
    oneDNN's allocator keeps statistics too; it is BFC for tensors of 256 KiB and more,
    and never gives memory back. Without oneDNN memory comes from malloc: None.
    """
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return "in use"
    try:
        tf.config.experimental.get_memory_info("CPU:0")
    except ValueError:
        return None
    return "resident"


class Buffer:
    """Memory that tensors share.

    Attributes:
        size: Bytes.
        part: The part of the report that it belongs to.
        uses: Operations that still read it, and callers that hold it.
        items: Buffers of the items, if it is a list of tensors.
        length: Items of a list for which memory is reserved; None if unknown.
        address: Where the allocator has put it; None if malloc has.
    """

    def __init__(self, size: int, part: str) -> None:
        self.size, self.part, self.uses = size, part, 1
        self.items: list[Buffer] = []
        self.length: int | None = None
        self.address: int | None = None


class Variable(Buffer):
    """A variable's handle; its value is another buffer, which a write may replace."""

    def __init__(self, value: Buffer) -> None:
        super().__init__(0, value.part)
        self.value = value


class Heap:
    """The buffers that are alive, by part of the report, and what was at the peak."""

    def __init__(self, measure: str | None) -> None:
        self.measure, self.blocks = measure, Blocks()
        self.live: collections.Counter[str] = collections.Counter()
        self.at_peak: collections.Counter[str] = collections.Counter()
        self.sums: dict[str, Buffer] = {}  # buffers of zeros, by the name of the AddN
        self.clock = self.peak_clock = 0

    def new(self, size: int, part: str) -> Buffer:
        """Return a new buffer with one use."""
        buffer = Buffer(size, part)
        if size >= (SMALLEST_ON_CPU if self.measure == "resident" else 1):
            buffer.address = self.blocks.take(size)
        self.live[part] += size
        if self.live.total() > self.at_peak.total():
            self.at_peak, self.peak_clock = self.live.copy(), self.clock
        return buffer

    def drop(self, buffer: Buffer) -> None:
        """Remove one use of ``buffer``; the last one frees it."""
        buffer.uses -= 1
        if buffer.uses == 0:
            self.live[buffer.part] -= buffer.size
            if buffer.address is not None:
                self.blocks.give_back(buffer.address)
            for item in buffer.items:
                self.drop(item)

    def move(self, buffer: Buffer, part: str) -> None:
        """Count ``buffer`` under another part."""
        self.live[buffer.part] -= buffer.size
        self.live[part] += buffer.size
        buffer.part = part

    def fragmentation(self) -> int:
        """Return the bytes that the allocator took beyond the peak of live buffers."""
        taken = {
            None: 0,
            "in use": self.blocks.most_in_use,
            "resident": self.blocks.resident(),
        }
        return max(0, taken[self.measure] - self.at_peak.total())


class Blocks:
    """TensorFlow's best-fit allocator with coalescing (BFC), where memory may grow.

    A request gets the smallest free block that holds it: all of it, or a part if the
    block is at least twice as large. Regions double in size.
    """

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []  # size and start, sorted
        self.sizes: dict[int, int] = {}  # of free blocks, by start
        self.starts: dict[int, int] = {}  # of free blocks, by end
        self.used: dict[int, int] = {}  # sizes of blocks in use, by start
        self.in_use = self.most_in_use = 0
        self.region, self.top = FIRST_REGION, 0
        # Sorted intervals, without overlap, of what was ever written to.
        self.low: list[int] = []
        self.high: list[int] = []

    def take(self, size: int) -> int:
        """Return the address of a block of at least ``size`` bytes."""
        index = bisect.bisect_left(self.free, (size, 0))
        if index == len(self.free):
            self._grow(size)
            index = bisect.bisect_left(self.free, (size, 0))
        block, start = self.free[index]
        self._remove(start)
        if block >= 2 * size:
            self._add(start + size, block - size)
            block = size
        self.used[start] = block
        self.in_use += block
        self.most_in_use = max(self.most_in_use, self.in_use)
        self._touch(start, start + size)
        return start

    def give_back(self, start: int) -> None:
        """Free a block and join it with its free neighbours."""
        size = self.used.pop(start)
        self.in_use -= size
        before, after = self.starts.get(start), start + size
        if after in self.sizes:
            size += self._remove(after)
        if before is not None:
            size += self._remove(before)
            start = before
        self._add(start, size)

    def resident(self) -> int:
        """Return how many bytes were ever written to."""
        return sum(self.high) - sum(self.low)

    def _grow(self, size: int) -> None:
        doubled = False
        while self.region < size:
            self.region, doubled = self.region * 2, True
        self._add(self.top, self.region)
        self.top += self.region + 1  # a gap, because regions are not joined
        if not doubled:
            self.region *= 2

    def _add(self, start: int, size: int) -> None:
        self.sizes[start], self.starts[start + size] = size, start
        bisect.insort(self.free, (size, start))

    def _remove(self, start: int) -> int:
        size = self.sizes.pop(start)
        del self.starts[start + size]
        self.free.remove((size, start))
        return size

    def _touch(self, low: int, high: int) -> None:
        """Add an interval to what was ever written to."""
        first = bisect.bisect_left(self.high, low)
        last = bisect.bisect_right(self.low, high)
        if first < last:
            low = min(low, self.low[first])
            high = max(high, self.high[last - 1])
        self.low[first:last], self.high[first:last] = [low], [high]
