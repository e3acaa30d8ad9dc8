"""What MLflow remembers of a run: parameters, curves, pictures, datasets, models. Only this package imports mlflow."""

from m2m.tracking.contract import NullTracker, Run, Tracker
from m2m.tracking.location import check_tracking, open_records, open_tracker
from m2m.tracking.origin import origin_tags
from m2m.tracking.places import bring_artifacts_along
from m2m.tracking.records import Chain, RecordedRun, Trace

__all__ = [
    "Chain",
    "NullTracker",
    "RecordedRun",
    "Run",
    "Trace",
    "Tracker",
    "bring_artifacts_along",
    "check_tracking",
    "open_records",
    "open_tracker",
    "origin_tags",
]
