"""`metrics.jsonl`: one sealed JSON object a line, each following the one before, the first following the configuration.

So a line that was changed, lost, doubled or brought from another run is seen; one that a crash cut short is no damage.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetless.errors import InputError
from forgetless.runs.files import read_content, seal, unseal, write_atomically

Record = dict[str, Any]


class RecordFile:
    """The records of one run.

    Args:
        path: The file.
        start: What the first line follows: the digest of the run's configuration.
    """

    def __init__(self, path: Path, start: str) -> None:
        self.path, self._start = path, start
        self._end: tuple[int, str] | None = None  # bytes, and the last line's digest

    def read(self) -> list[Record]:
        """All whole lines; a last one that a crash cut short is left out. The file stays as it is.

        Raises:
            InputError: If a line is not what was written there; the message has its number.
        """
        return self._read()[0]

    def _read(self) -> tuple[list[Record], int, str]:
        """The records, the bytes that they take, the digest of the last."""
        try:
            content = read_content(self.path)
        except FileNotFoundError:
            content = b""
        whole = content[: content.rfind(b"\n") + 1]
        records, digest = [], self._start
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                record, digest = unseal(line, digest)
            except ValueError as error:
                raise InputError(
                    f"Expected the records of one run, as it wrote them, in {self.path}, but line {number} is not the "
                    f"one that follows line {number - 1}: {error}. Put the file back, or remove this line and all "
                    "after it and resume the run."
                ) from error
            records.append(record)
        return records, len(whole), digest

    def repair(self) -> None:
        """Make the file if it is missing; cut off a last line that a crash cut short.

        Raises:
            InputError: If a line is not what was written there.
            OSError: If the file cannot be written.
        """
        self.path.touch()
        _, size, digest = self._read()
        if self.path.stat().st_size > size:
            os.truncate(self.path, size)
        self._end = size, digest

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line and force it to the disk.

        Args:
            record: JSON-serialisable values, at least one.

        Raises:
            InputError: If the file is no longer as this process left it.
            OSError: If it cannot be written; it is then as before, or has half a line more, which `repair` cuts off.
        """
        if self._end is None:
            self.repair()
        assert self._end is not None
        size, digest = self._end
        line, digest = seal(json.dumps(record, allow_nan=False), digest)
        content = line.encode() + b"\n"
        with self.path.open("r+b") as file:  # which does not make a new file in the place of one that is gone
            if file.seek(0, os.SEEK_END) != size:
                raise InputError(
                    f"Expected {self.path} as this process left it, but it was changed. Stop what else writes there, "
                    "then resume the run."
                )
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, size)
                raise
        self._end = size + len(content), digest

    def replace(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Set the file to other records, in one step.

        Args:
            records: JSON-serialisable values.

        Raises:
            OSError: If it cannot be written; it is then as before.
        """
        lines, digest = [], self._start
        for record in records:
            line, digest = seal(json.dumps(record, allow_nan=False), digest)
            lines.append(f"{line}\n")
        text = "".join(lines)
        write_atomically(self.path, text)
        self._end = len(text.encode()), digest
