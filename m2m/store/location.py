"""From an address to a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from m2m.errors import UserError
from m2m.store.contract import Store
from m2m.store.local import LocalStore


def open_store(uri: str, *, cache: Path) -> Store:
    """The store at `uri`: ``s3://bucket/prefix``, or a folder. Asks nothing of it yet: that is `Store.check`.

    Args:
        cache: folder for what is fetched from S3. A local store needs none.

    Raises:
        UserError: the address is of another kind, or S3 is not configured.
    """
    if "://" not in uri:
        return LocalStore(Path(uri))
    address = urlsplit(uri)
    if address.scheme != "s3" or not address.netloc or address.query or address.fragment or "@" in address.netloc:
        raise UserError(
            f"store address of scheme {address.scheme!r} not understood; expected a folder or s3://bucket/prefix"
        )
    from m2m.store.s3 import S3Store  # boto3 takes a while to import

    return S3Store(bucket=address.netloc, prefix=address.path.strip("/"), cache=cache)
