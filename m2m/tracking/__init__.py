"""What MLflow remembers of a run: parameters, curves, pictures, datasets, models. Only this package imports mlflow."""

from m2m.tracking.connection import bring_artifacts_along, check_tracking, open_history, open_tracker
from m2m.tracking.contract import NullTracker, Run, Tracker
from m2m.tracking.history import Chain, PastRun, Trace, installed_libraries, origin_tags

__all__ = [
    "Chain",
    "NullTracker",
    "PastRun",
    "Run",
    "Trace",
    "Tracker",
    "bring_artifacts_along",
    "check_tracking",
    "installed_libraries",
    "open_history",
    "open_tracker",
    "origin_tags",
]
