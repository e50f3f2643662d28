"""Maps of large collections: stored in shards, resumable, computed by one process or many.

`export_maps` writes the maps of a collection, `load_maps` reads them back, and `explain_batch`
computes the same maps in a loop of your own.
"""

from captum_clip_surgery.export._explaining import BatchResult, explain_batch
from captum_clip_surgery.export._manifest import write_manifest
from captum_clip_surgery.export._maps import MapStore, load_maps
from captum_clip_surgery.export._run import ExportSummary, export_maps
from captum_clip_surgery.export._shards import FORMATS
from captum_clip_surgery.export._sources import Sample, Shard, Source, open_source

__all__ = [
    "FORMATS",
    "BatchResult",
    "ExportSummary",
    "MapStore",
    "Sample",
    "Shard",
    "Source",
    "explain_batch",
    "export_maps",
    "load_maps",
    "open_source",
    "write_manifest",
]
