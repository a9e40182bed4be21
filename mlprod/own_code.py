"""What code this is: the SHA-256 of mlprod's own files, by which processes find out whether they run the same."""

import hashlib
from pathlib import Path


def code_sha256() -> str:
    """Returns the digest over all modules of mlprod as they lie on the disk now."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def file_sha256(path: str) -> str:
    """Returns the digest of a small file; OSError where it cannot be read."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
