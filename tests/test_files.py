"""Files that are replaced as a whole."""

import pytest

from cwps_jax.files import replacing, write_atomically


def test_text_and_bytes_are_written_and_nothing_else_is_left(tmp_path):
    for content, expected in (("één\n", "één\n".encode()), (b"\0\1", b"\0\1"), ("", b"")):
        write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_after_an_error_the_old_file_is_there_alone(tmp_path):
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as partial:
        partial.write_text("half")
        assert (tmp_path / "file").read_text() == "old"
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", "")
