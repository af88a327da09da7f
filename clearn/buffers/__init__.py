"""Stored examples for rehearsal: which are kept, and how they are drawn.

Which example goes where is worked out on the host from sizes it knows, with a CPU generator; the
examples themselves stay on the device, so that neither adding nor drawing waits for it.
"""

from clearn.buffers.balanced import BalancedBuffer
from clearn.buffers.buffer import Buffer, Entries
from clearn.buffers.make import DEFAULT_SIZE, Kind, make_buffer
from clearn.buffers.reservoir import ReservoirBuffer
from clearn.buffers.ring import RingBuffer
from clearn.buffers.slots import Slots, distinct

__all__ = [
    "DEFAULT_SIZE",
    "BalancedBuffer",
    "Buffer",
    "Entries",
    "Kind",
    "ReservoirBuffer",
    "RingBuffer",
    "Slots",
    "distinct",
    "make_buffer",
]
