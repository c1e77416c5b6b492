"""Data sets of torchvision, which checks their files and downloads them on request."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from anytime_lct.data.images import damage_error
from anytime_lct.errors import DataError


def open_set(kind: Any, name: str, root: Path, *, train: bool = True, download: bool = False) -> Any:
    """Open a data set by torchvision, which checks its files, and downloads them with `download`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(str(root), train=train, download=download)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if download:
            raise DataError(
                f"The data set '{name}' could not be downloaded to '{root.absolute()}' ({reason}); "
                f"put torchvision's files there, or name a folder that has them with --data-root."
            ) from None
        raise damage_error(name, root, reason) from None
