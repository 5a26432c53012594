"""The demo's tree: what it takes in, what it leaves out, and its digests."""

import hashlib
import os
import socket
from pathlib import Path

import pytest

from broker.demo.tree import (
    Listed,
    compute,
    decode_path,
    encode_path,
    folder_digest,
    leaf_digest,
    scan,
)


def digest_of(folder: Path) -> str:
    return compute(scan(str(folder)))[-1]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "inner" / "empty").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "inner" / "b.txt").write_bytes(b"b")
    return root


def test_digest_is_that_of_the_listings_worked_out_by_hand(folder: Path) -> None:
    empty = sha256(b"")
    inner = sha256(f"file {sha256(b'b')} b.txt\nfolder {empty} empty\n".encode())
    root = sha256(f"file {sha256(b'a')} a.txt\nfolder {inner} inner\n".encode())

    assert digest_of(folder) == root


def test_each_node_comes_after_its_children_and_the_root_last(folder: Path) -> None:
    tree = scan(str(folder))

    assert tree.nodes[-1].path == str(folder)
    for place, node in enumerate(tree.nodes):
        assert all(child < place for child in node.children)
    assert (tree.count("file"), tree.count("folder"), tree.size_bytes) == (2, 3, 2)


@pytest.mark.parametrize("change", ["content", "name", "new", "gone", "kind"])
def test_digest_changes_with_content_name_and_kind(folder: Path, change: str) -> None:
    before = digest_of(folder)

    file = folder / "inner" / "b.txt"
    match change:
        case "content":
            file.write_bytes(b"B")
        case "name":
            file.rename(file.with_name("c.txt"))
        case "new":
            (folder / "inner" / "empty" / "new").touch()
        case "gone":
            file.unlink()
        case "kind":
            file.unlink()
            file.mkdir()

    assert digest_of(folder) != before


def test_empty_folder_has_a_digest(tmp_path: Path) -> None:
    assert digest_of(tmp_path) == sha256(b"")


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(str(tmp_path / "nowhere"))


def test_link_counts_by_what_it_says_and_is_not_followed(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to("/no/such/place")

    tree = scan(str(folder))

    assert tree.count("link") == 2
    assert leaf_digest(str(folder / "dangling"), "link") == sha256(b"/no/such/place")
    compute(tree)


def test_names_that_are_not_utf8_pass(folder: Path) -> None:
    name = os.fsdecode(b"\xff\n \xe2%41.txt")
    (folder / name).write_bytes(b"odd")

    tree = scan(str(folder))

    (node,) = (each for each in tree.nodes if each.path.endswith(name))
    assert node.name == "%FF%0A%20%E2%2541.txt"
    assert decode_path(encode_path(node.path)) == node.path
    compute(tree)


def test_pipes_and_sockets_are_left_out(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        before = scan(str(folder))

    assert {os.path.basename(each.path) for each in before.skipped} == {"pipe", "socket"}
    assert len(before.nodes) == 5


def test_bytecode_is_left_out(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").touch()

    assert digest_of(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_what_cannot_be_read_is_left_out(folder: Path) -> None:
    (folder / "a.txt").chmod(0)
    (folder / "inner").chmod(0)
    try:
        tree = scan(str(folder))
    finally:
        (folder / "inner").chmod(0o700)

    assert {os.path.basename(each.path) for each in tree.skipped} == {"a.txt", "inner"}
    assert [node.path for node in tree.nodes] == [str(folder)]


def test_folder_that_cannot_be_listed_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("inner"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    tree = scan(str(folder))

    assert [(os.path.basename(path), why) for path, why in tree.skipped] == [
        ("inner", "Permission denied")
    ]
    assert len(tree.nodes) == 2
    assert len(tree.nodes[-1].children) == 1


def test_file_that_became_a_pipe_does_not_hold_it_up(folder: Path) -> None:
    tree = scan(str(folder))
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")

    with pytest.raises(OSError, match="no longer a file"):
        compute(tree)


def test_folders_nested_five_hundred_deep(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(500):
        deep = deep / "d"
    deep.mkdir(parents=True)

    tree = scan(str(tmp_path))

    assert tree.count("folder") == 501
    compute(tree)


def test_order_of_entries_does_not_matter() -> None:
    entries = [Listed("b", "file", "2"), Listed("a", "folder", "1")]

    assert folder_digest(entries) == folder_digest(reversed(entries))
