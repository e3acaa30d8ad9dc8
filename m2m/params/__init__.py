"""The typed parameters: one frozen model a stage, every value in YAML, nothing defaulted here.

The keys are those of ``params.yaml`` and of every file under ``profiles/``. A stage of ``dvc.yaml`` lists exactly the
keys that it reads, so the grouping below decides what a change makes stale.
"""

from m2m.params.datasets import *
from m2m.params.models import *
