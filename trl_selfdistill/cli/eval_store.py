"""Completions of an evaluation on disk, so that one that was stopped goes on, and no two are mixed."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_selfdistill.cli.errors import UserError

Record = dict[str, Any]
Key = tuple[str, int, int]
"""(thinking mode, problem, sample)."""


def digest(value: Any) -> str:
    """64 bits of a hash of anything that JSON can write; other values as their text."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SampleStore:
    """`samples.jsonl` in a folder, and `settings.json`, which says what they were made with.

    Args:
        folder: made where it is not there.
        settings: all that decides the samples.

    Raises `UserError` for a folder with the samples of other settings, naming them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._samples = folder, folder / "samples.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        own = json.loads(json.dumps(settings, default=str))
        file = folder / "settings.json"
        if file.is_file():
            self._compare(json.loads(file.read_text()), own)
        else:
            write_whole(file, json.dumps(own, indent=1) + "\n")
        self.done: dict[Key, Record] = {key_of(record): record for record in self._read()}

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if different:
            shown = ", ".join(f"{name} {old.get(name)!r} is now {new.get(name)!r}" for name in different[:3])
            raise UserError(
                f"{self.folder} holds the samples of other settings ({shown}). Take another --output_dir, or remove "
                "the folder."
            )

    def _read(self) -> list[Record]:
        """All whole lines. One that was cut off by the end of a process is removed from the file."""
        if not self._samples.is_file():
            return []
        text = self._samples.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_whole(self._samples, whole)
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, records: Sequence[Record]) -> None:
        """Append the samples of a finished chunk."""
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with self._samples.open("a") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {key_of(record): record for record in records}


def key_of(record: Record) -> Key:
    return record["thinking"], record["problem"], record["sample"]


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole, or as it was."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)
