"""The files of a source that are no images: counted, so that what was left out is reported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

ENDINGS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_LITTER = ("thumbs.db", "desktop.ini")  # that file managers leave
# Of the system, of storage servers and of Windows, in addition to names that begin with a dot.
_SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
_TABLES = (".arrow", ".csv", ".feather", ".jsonl", ".ndjson", ".parquet", ".tsv", ".xls", ".xlsx")
_OF_LABELS = ("annotation", "attr", "caption", "class", "dataset", "label", "metadata", "target")
_SHOWN = 8

LABELS_FILE = "labels.csv"


class PassedOver:
    """Tells images from other files, and counts the others."""

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()
        self.tables: list[str] = []
        self.label_files = 0  # called labels.csv
        self.links: list[str] = []  # folders that were met a second time
        self.left_out: Sequence[str] = ()  # folders and tables that are read as what the images are conditioned on

    def is_image(self, path: str) -> bool:
        """Whether a file is to be read, by its path with /; what is hidden is neither an image nor counted."""
        parts = path.split("/")
        name = parts[-1].lower()
        if any(map(is_hidden, parts)) or name in _LITTER:
            return False
        stem, ending = os.path.splitext(name)
        if ending in ENDINGS:
            return True
        if parts[-1] == LABELS_FILE:
            self.label_files += 1
            return False
        self.endings[ending.removesuffix(".")] += 1
        if ending in _TABLES or any(word in stem for word in _OF_LABELS):
            self.tables.append(parts[-1])
        return False

    def notes(self, labels_are_read: bool = False) -> list[str]:
        """What was left out, a line each; labels.csv, too, unless that is read."""
        if self.label_files and not labels_are_read:
            self.endings[".csv"] += self.label_files
            self.tables, self.label_files = [LABELS_FILE] * self.label_files + self.tables, 0
        again = [f"{', '.join(self.links[:3])}: links to folders that are read already, left out"] if self.links else []
        count = self.endings.total()
        if not count:
            return again
        known = sorted(ending for ending, files in self.endings.items() if ending and files)
        endings = " ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
        endings = ", ".join(filter(None, (endings, "no ending" if self.endings[""] else "")))
        found = [f"{count:,} {'file' if count == 1 else 'files'} passed over: {endings} (not read)"]
        if self.tables:
            names = ", ".join(self.tables[:3]) + (", ..." if len(self.tables) > 3 else "")
            found.append(
                f"not used: {names}; labels are taken from folders, the column 'label' of {LABELS_FILE}, .cls files in "
                "tar shards, and .npz files"
            )
        return found + again


def is_hidden(name: str) -> bool:
    """Whether a file or folder is of the system's, not of the user's."""
    return name.startswith(".") or name.lower() in _SYSTEM
