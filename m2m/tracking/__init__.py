"""What MLflow remembers of a run: parameters, curves, pictures, datasets, models. Only this package imports mlflow."""

from m2m.tracking.contract import NullTracker, Run, Tracker
from m2m.tracking.location import check_tracking, open_tracker

__all__ = ["NullTracker", "Run", "Tracker", "check_tracking", "open_tracker"]
