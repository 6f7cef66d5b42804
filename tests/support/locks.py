"""Reading requirement files with pinned versions."""

import re
from pathlib import Path


def canonical(name: str) -> str:
    """Spell a distribution's name as indexes do (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: Path) -> dict[str, str]:
    """Return version by canonical name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE)
    return {canonical(name): version for name, version in found}
