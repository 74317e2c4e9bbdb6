"""A model of what TensorFlow's allocator takes from the system to hold what is alive.

Free blocks that fit nothing are taken all the same. Buffers know their uses, and go
back when the last one is over; the heap keeps the most that ever was.
"""

import bisect
import collections


def measured_by():
    """Return what of the allocator is measured: "in use", "resident" or None.

    oneDNN's allocator of the CPU, which keeps statistics, is the one of the GPU (BFC)
    for tensors of 256 KiB and more, and never gives memory back. The other one calls
    malloc.
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
    """Memory that tensors share: bytes, uses still to come, part of the report."""

    def __init__(self, size, part):
        self.size, self.part, self.uses = size, part, 1
        self.items = []  # of a list of tensors
        self.length = None
        self.address = None


class Variable(Buffer):
    """A handle: its value is another buffer, which a write may replace."""

    def __init__(self, value):
        super().__init__(0, value.part)
        self.value = value


class Heap:
    """What is alive, and the most that ever was."""

    def __init__(self, measure):
        self.measure, self.blocks = measure, Blocks()
        self.live, self.at_peak = collections.Counter(), collections.Counter()
        self.sums = {}  # buffers of zeros, by the name of the AddN
        self.clock = self.peak_clock = 0

    def new(self, size, part):
        """Return a buffer with one use."""
        buffer = Buffer(size, part)
        if size >= (2**18 if self.measure == "resident" else 1):
            buffer.address = self.blocks.take(size)
        self.live[part] += size
        if self.live.total() > self.at_peak.total():
            self.at_peak, self.peak_clock = self.live.copy(), self.clock
        return buffer

    def drop(self, buffer):
        """Take one use away; the last one frees the buffer."""
        buffer.uses -= 1
        if buffer.uses == 0:
            self.live[buffer.part] -= buffer.size
            if buffer.address is not None:
                self.blocks.give(buffer.address)
            for item in buffer.items:
                self.drop(item)

    def move(self, buffer, part):
        """Count ``buffer`` under another part."""
        self.live[buffer.part] -= buffer.size
        self.live[part] += buffer.size
        buffer.part = part

    def fragmentation(self):
        """Return the bytes that the allocator took beyond the peak of what is alive."""
        taken = {"in use": self.blocks.most_in_use, "resident": self.blocks.resident()}
        return max(0, taken.get(self.measure, 0) - self.at_peak.total())


class Blocks:
    """TensorFlow's best-fit allocator with coalescing (BFC), where memory may grow.

    A request gets the smallest free block that holds it, and the whole of it unless
    that is twice as large. Regions double in size.
    """

    def __init__(self):
        self.free, self.sizes, self.starts = [], {}, {}  # by size; by start; by end
        self.used, self.in_use, self.most_in_use = {}, 0, 0
        self.region, self.top = 2**21, 0
        self.low, self.high = [], []  # what was ever written to, as intervals

    def take(self, size):
        """Return the address of a block of at least ``size`` bytes."""
        place = bisect.bisect_left(self.free, (size, 0))
        if place == len(self.free):
            self._grow(size)
            place = bisect.bisect_left(self.free, (size, 0))
        block, start = self.free[place]
        self._remove(start)
        if block >= 2 * size:
            self._add(start + size, block - size)
            block = size
        self.used[start] = block
        self.in_use += block
        self.most_in_use = max(self.most_in_use, self.in_use)
        self._touch(start, start + size)
        return start

    def give(self, start):
        """Take a block back and join it with its free neighbours."""
        size = self.used.pop(start)
        self.in_use -= size
        before, after = self.starts.get(start), start + size
        if after in self.sizes:
            size += self._remove(after)
        if before is not None:
            size += self._remove(before)
            start = before
        self._add(start, size)

    def resident(self):
        """Return how many bytes were ever written to."""
        return sum(self.high) - sum(self.low)

    def _grow(self, size):
        doubled = False
        while self.region < size:
            self.region, doubled = self.region * 2, True
        self._add(self.top, self.region)
        self.top += self.region + 1  # apart, as other regions are not joined
        if not doubled:
            self.region *= 2

    def _add(self, start, size):
        self.sizes[start], self.starts[start + size] = size, start
        bisect.insort(self.free, (size, start))

    def _remove(self, start):
        size = self.sizes.pop(start)
        del self.starts[start + size]
        self.free.remove((size, start))
        return size

    def _touch(self, low, high):
        first = bisect.bisect_left(self.high, low)
        last = bisect.bisect_right(self.low, high)
        if first < last:
            low = min(low, self.low[first])
            high = max(high, self.high[last - 1])
        self.low[first:last], self.high[first:last] = [low], [high]
