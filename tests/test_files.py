"""Files: whole or absent, never through a link, and only regular ones are read."""

import os
import stat

import pytest

from bptt.errors import InputError
from bptt.files import append, open_own, read_regular, refuse_link, write_atomically, writing
from tests.runs import SMALL, bptt, failed

PRECIOUS = b"all my work\n"


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_bytes(PRECIOUS)
    return path


def test_what_is_written_replaces_a_link_and_leaves_what_it_points_at(precious, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(precious)
    write_atomically(link, b"ours")
    assert (link.read_bytes(), link.is_symlink(), precious.read_bytes()) == (b"ours", False, PRECIOUS)
    link.unlink()
    os.link(precious, link)
    write_atomically(link, b"ours")
    assert (link.read_bytes(), precious.read_bytes()) == (b"ours", PRECIOUS)


def test_a_file_that_fails_half_way_was_never_there(precious):
    def half():
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError), writing(precious) as file:
        file.writelines(half())
    assert precious.read_bytes() == PRECIOUS
    assert [path.name for path in precious.parent.iterdir()] == ["precious.txt"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_is_not_opened(precious, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(precious)
    for opening in (refuse_link, open_own, lambda path: append(path, b"line\n")):
        with pytest.raises(InputError, match="is a symbolic link"):
            opening(link)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "made through a link")
    with pytest.raises(InputError, match="is a symbolic link"):
        append(dangling, b"line\n")
    assert precious.read_bytes() == PRECIOUS
    assert not (tmp_path / "made through a link").exists()


def test_a_link_that_appears_after_the_look_is_not_followed_either(precious, tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(precious)
    monkeypatch.setattr("bptt.files.refuse_link", lambda path: None)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        append(link, b"line\n")
    assert precious.read_bytes() == PRECIOUS


def test_what_is_appended_to_a_file_with_two_names_is_in_one_of_them(precious, tmp_path):
    """`cp --archive --link`, and the backups made by it, give a file a second name."""
    os.link(precious, tmp_path / "timing.jsonl")
    append(tmp_path / "timing.jsonl", b"a\n")
    append(tmp_path / "timing.jsonl", b"b\n")
    assert (tmp_path / "timing.jsonl").read_bytes() == PRECIOUS + b"a\nb\n"
    assert precious.read_bytes() == PRECIOUS


def test_only_regular_files_are_read_and_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder")):
        with pytest.raises(InputError, match=f"is {kind}, wanted a regular file"):
            read_regular(tmp_path / name)
    with pytest.raises(InputError, match="is a named pipe"):
        open_own(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a named pipe"):
        write_atomically(tmp_path / "pipe", b"")
    with pytest.raises(InputError, match="is a device"):
        read_regular("/dev/zero")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_atomically(tmp_path / "folder", b"")
    assert error.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(FileNotFoundError) as error:
        write_atomically(tmp_path / "none" / "file", b"")
    assert error.value.filename == str(tmp_path / "none" / "file")


def test_no_more_is_read_than_can_be(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", largest=5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes, and 4 are the most"):
        read_regular(tmp_path / "a", largest=4)


# A run folder with links in it -------------------------------------------------------------------------------------

OPENED = (".lock", "metrics.jsonl", "timing.jsonl")  # the others are made anew
MADE = ("config.json", "checkpoint.safetensors", "model.safetensors", "report.json", "report.html", "curve.png")
RUN = ["adding", "--length", "5", *SMALL, "--steps", "4", "--watch", "2"]


@pytest.mark.parametrize("name", OPENED)
def test_a_run_does_not_open_a_link(name, precious, tmp_path):
    run = tmp_path / "run"
    assert bptt("train", *RUN, "--out", run).returncode == 0
    (run / name).unlink()
    (run / name).symlink_to(precious)
    (run / "report.json").unlink()
    if name == "metrics.jsonl":
        (run / "checkpoint.safetensors").unlink()
        (run / "model.safetensors").unlink()
        precious.write_bytes(b"")  # else it says that the checkpoint is missing
    error = failed(bptt("train", "--resume", run, "--steps", "6"))
    assert f"{run / name} is a symbolic link, and a run writes no file outside its folder" in error
    assert precious.read_bytes() in (b"", PRECIOUS)


def test_a_new_run_beside_a_lock_that_is_a_link(precious, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").symlink_to(precious)
    assert "is a symbolic link" in failed(bptt("train", *RUN, "--out", tmp_path / "new"))
    assert precious.read_bytes() == PRECIOUS


def test_what_a_resumed_run_makes_anew_replaces_links(precious, tmp_path):
    run = tmp_path / "run"
    assert bptt("train", *RUN, "--out", run).returncode == 0
    targets = {}
    for name in MADE:
        targets[name] = tmp_path / f"elsewhere-{name}"
        (run / name).rename(targets[name])
        (run / name).symlink_to(targets[name])
    before = {name: path.read_bytes() for name, path in targets.items()}
    result = bptt("train", "--resume", run, "--steps", "6")
    assert result.returncode == 0, result.stderr
    assert {name: path.read_bytes() for name, path in targets.items()} == before
    assert not any((run / name).is_symlink() for name in MADE)


def test_the_copy_of_a_run_by_hard_links_is_left_alone(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert bptt("train", *RUN, "--out", run).returncode == 0
    copy.mkdir()
    for path in run.iterdir():
        os.link(path, copy / path.name)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert bptt("train", "--resume", run, "--steps", "6").returncode == 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert bptt("train", "--resume", copy, "--steps", "6").returncode == 0
    assert (copy / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
