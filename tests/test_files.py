"""Files that are complete or as they were."""

import io

import pytest

from online_grads.files import write_whole


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
