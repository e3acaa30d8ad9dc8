"""The object store: immutable bytes under content-addressed keys, in a local folder or in S3."""

from m2m.store.contract import Store
from m2m.store.local import LocalStore
from m2m.store.location import open_store

__all__ = ["LocalStore", "Store", "open_store"]
