"""Writing files so that no half of one is ever seen."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to a file, which is complete or as it was.

    They go to a hidden file beside it first, which then takes its place.

    Args:
        path: where to, in a folder that exists.
        content: all that the file then holds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "numbers.json", b"[1, 2]")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('numbers.json', '[1, 2]')]
    """
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    os.replace(beside, path)
