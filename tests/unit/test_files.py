import errno
import os
from pathlib import Path

import pytest

from msdv import files
from msdv.errors import UsageError
from msdv.files import is_unfinished, refuse_overwrite, refuse_unwritable, write_file, write_folder


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    with write_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert is_unfinished(temporary)
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "f"
    path.write_text("old")
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(error), write_file(path) as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), write_folder(folder) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "f"]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for name in ("first", "second"):
        with write_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in folder.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_results_have_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    with write_file(tmp_path / "ours") as temporary:
        temporary.write_text("")
    assert (tmp_path / "ours").stat().st_mode == ordinary.stat().st_mode
    (tmp_path / "plain").mkdir()
    with write_folder(tmp_path / "ours too"):
        pass
    assert (tmp_path / "ours too").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_exists_is_not_overwritten_unasked(tmp_path: Path) -> None:
    refuse_overwrite(tmp_path / "new", False)
    (tmp_path / "empty").mkdir()
    refuse_overwrite(tmp_path / "empty", False)
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="exists: choose another name, or pass --overwrite"):
        refuse_overwrite(tmp_path / "a", False)
    refuse_overwrite(tmp_path / "a", True)
    (tmp_path / "empty" / "x").write_text("")
    with pytest.raises(UsageError):
        refuse_overwrite(tmp_path / "empty", False)


def test_a_full_disk_is_named_whatever_the_library_says(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, write_file(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_comes_up_in_between_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write the same folder at once: neither fails, and one of them is there, whole."""
    target = tmp_path / "clip"
    rename = files._rename

    def other_was_faster(source: Path, to: Path) -> None:
        monkeypatch.setattr(files, "_rename", rename)
        if to == target:
            target.mkdir()
            (target / "theirs.txt").touch()
        rename(source, to)

    monkeypatch.setattr(files, "_rename", other_was_faster)
    with write_folder(target) as temporary:
        (temporary / "ours.txt").touch()
    assert [path.name for path in target.iterdir()] == ["ours.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="takes permissions that are kept")
def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="permission denied"):
        refuse_unwritable(tmp_path / "new" / "a.gif")


def test_a_place_that_can_hold_no_file_is_told_before_the_work(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "folder" / "a.gif")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"a.gif can't be written \(.*file: not a directory\): choose another place"):
        refuse_unwritable(tmp_path / "file" / "a.gif")


def test_errors_name_what_was_to_be_written(tmp_path: Path) -> None:
    for write in (write_file, write_folder):
        with pytest.raises(PermissionError) as caught, write(tmp_path / "a.gif") as temporary:
            raise PermissionError(errno.EACCES, "no", str(temporary))
        assert caught.value.filename == str(tmp_path / "a.gif")
    with pytest.raises(OSError, match=r"File exists|Not a directory"), write_file(Path(__file__) / "a.gif"):
        pass
