"""Collections of images as a whole: which classes lean on the background."""

from captum_clip_surgery.collection._audit import audit
from captum_clip_surgery.collection._result import Audit, ClassAudit, HeadLift

__all__ = ["Audit", "ClassAudit", "HeadLift", "audit"]
