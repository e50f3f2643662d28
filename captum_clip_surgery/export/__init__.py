"""Large collections explained: shards of maps, restartable, by one process or many.

See `export_maps` for a collection, `load_maps` to read it back, `explain_batch` for a user's own
loop.
"""

from captum_clip_surgery.export.explaining import BatchResult, explain_batch
from captum_clip_surgery.export.manifest import write_manifest
from captum_clip_surgery.export.maps import MapStore, load_maps
from captum_clip_surgery.export.run import ExportSummary, export_maps
from captum_clip_surgery.export.sources import Sample, Shard, Source, open_source

__all__ = [
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
