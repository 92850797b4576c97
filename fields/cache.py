"""Where does what can be made again lie on this machine?"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder(override: str | os.PathLike[str] | None = None) -> Path:
    """Folder for what can be made again: `override`, `$POLYFIELD_CACHE`, else the platform's."""
    named = override or os.environ.get("POLYFIELD_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "polyfield"
