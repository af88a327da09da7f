"""The mathematics of prompt queues: eviction, re-weighting, memory retention, and the queue.

After Q-tuning (Guo et al. 2024, arXiv 2404.14607). Its body and code were not at hand: what the
docstrings call ours is our choice and no claim about the paper.
"""

from clearn.prompts.eviction import (
    EVICTIONS,
    Evict,
    EvictionOptions,
    dq_pca,
    fifo,
    merge_oldest,
    random_rows,
)
from clearn.prompts.queue import PromptQueue, aggregate, vocabulary_rows
from clearn.prompts.retention import JSD_FLOOR, JSDCritic, jsd_bound

__all__ = [
    "EVICTIONS",
    "JSD_FLOOR",
    "Evict",
    "EvictionOptions",
    "JSDCritic",
    "PromptQueue",
    "aggregate",
    "dq_pca",
    "fifo",
    "jsd_bound",
    "merge_oldest",
    "random_rows",
    "vocabulary_rows",
]
