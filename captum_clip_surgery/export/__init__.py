"""Maps of large collections as Parquet files, computed by one process, a cluster or a loop.

`plan` lays out an export, `Plan.explain` computes any part of it, `load_maps` reads maps back, and
`explain_batch` computes the same maps without files.
"""

from captum_clip_surgery.export._explaining import BatchResult, explain_batch
from captum_clip_surgery.export._maps import MapStore, load_maps
from captum_clip_surgery.export._plan import Plan, plan

__all__ = [
    "BatchResult",
    "MapStore",
    "Plan",
    "explain_batch",
    "load_maps",
    "plan",
]
