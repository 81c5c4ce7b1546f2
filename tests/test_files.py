"""Files that are complete or as they were."""

import io
import os

import pytest

from online_grads.files import make_folder, remove_folder, whole_folder, write_whole


def test_a_file_is_complete_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "numbers.json"
    write_whole(path, b"old")
    write_whole(path, io.BytesIO(b"newer").getbuffer())
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("os.replace", lambda *_: pytest.fail("interrupted"))
    with pytest.raises(pytest.fail.Exception, match="interrupted"):
        write_whole(path, b"newest")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        "os.fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino) or sync(descriptor)
    )
    monkeypatch.setattr("os.replace", lambda *paths: done.append("replaced") or replace(*paths))
    path = tmp_path / "numbers.json"
    write_whole(path, b"1")
    assert done == [path.stat().st_ino, "replaced", tmp_path.stat().st_ino]


def test_a_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "a" / "b" / "run"
    make_folder(path.parent)

    def interrupted():
        with whole_folder(path) as beside:
            (beside / "numbers.json").write_text("old")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(path.parent.iterdir()) == []
    for content in ("old", "new"):
        with whole_folder(path, aside=path.with_name("before")) as beside:
            (beside / "numbers.json").write_text(content)
    assert (path / "numbers.json").read_text() == "new"
    assert (path.with_name("before") / "numbers.json").read_text() == "old"
    for _ in range(2):  # another process may have been quicker
        remove_folder(path)
    assert list(path.parent.iterdir()) == [path.with_name("before")]
