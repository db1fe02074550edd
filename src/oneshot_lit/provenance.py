"""Which code is running: a hash of the package itself."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import oneshot_lit


@cache
def source_hash() -> str:
    """Return a hash of the package's own code: a changed method is a changed input."""
    package = Path(oneshot_lit.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        # How results are shown does not change them.
        if file.relative_to(package).parts[0] not in ("study", "plots"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
