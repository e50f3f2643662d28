"""Collections of images as a whole: audits for classes that lean on the background, and search."""

from captum_clip_surgery.collection._audit import audit
from captum_clip_surgery.collection._result import Audit, ClassAudit, HeadLift
from captum_clip_surgery.collection._search import Hit, ImageIndex, search

__all__ = ["Audit", "ClassAudit", "HeadLift", "Hit", "ImageIndex", "audit", "search"]
