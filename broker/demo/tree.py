"""The Merkle tree of a folder: what it consists of, and its digests without any queue.

A file's digest is the SHA-256 of its content, a symbolic link's that of the text it holds, and a
folder's that of a listing of its entries, one line each in the order of their names:
``KIND DIGEST NAME``. Names stand there percent-encoded, so that any bytes in them pass.

A tree is a picture of one moment: entries that come later do not matter, ones that change or go
away are noticed. Left out are what has no content to speak of (sockets, pipes, devices), what
cannot be read, and ``__pycache__``, which any Python program may write to at any time.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

Kind = Literal["file", "link", "folder"]

LEFT_OUT_FOLDER = "__pycache__"
READ_BYTES = 1 << 18


@dataclass(slots=True)
class Node:
    """One entry of a tree."""

    path: str
    kind: Kind
    size_bytes: int = 0
    modified_ns: int = 0
    """Of a file or link: when it was last written to, as of the scan."""
    children: list[int] = field(default_factory=list)
    """Of a folder: the places of its entries in the tree's nodes, each before the folder's own."""

    @property
    def name(self) -> str:
        """The last part of the path, percent-encoded."""
        return encode_path(os.path.basename(self.path))


class Skipped(NamedTuple):
    """An entry that is left out, and why."""

    path: str
    why: str


@dataclass(slots=True)
class Tree:
    """A folder and all below it; each node comes after all of its children, the root is last."""

    nodes: list[Node]
    skipped: list[Skipped]

    def count(self, *kinds: Kind) -> int:
        """How many nodes are of one of ``kinds``."""
        return sum(node.kind in kinds for node in self.nodes)

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(node.size_bytes for node in self.nodes)


class Listed(NamedTuple):
    """An entry as its folder's listing shows it."""

    name: str
    kind: str
    digest: str


def scan(folder: str) -> Tree:
    """The tree of ``folder`` as it is now; raises OSError if the folder itself cannot be read."""
    root = os.path.abspath(folder)
    skipped: list[Skipped] = []
    found = [Node(root, "folder")]
    parents = [-1]
    # Each folder's entries are appended after the folder: the list read backwards has every
    # entry before its folder, without recursion, however deep the folders nest.
    place = 0
    while place < len(found):
        node = found[place]
        if node.kind == "folder":
            try:
                entries = sorted(os.scandir(node.path), key=lambda each: os.fsencode(each.name))
            except OSError as error:
                if place == 0:
                    raise
                skipped.append(Skipped(node.path, error.strerror or str(error)))
                parents[place] = -1
                node.path = ""
                entries = []
            for entry in entries:
                child = _node(entry, skipped)
                if child is not None:
                    found.append(child)
                    parents.append(place)
        place += 1
    return Tree(_children_first(found, parents), skipped)


def _node(entry: os.DirEntry[str], skipped: list[Skipped]) -> Node | None:
    try:
        info = entry.stat(follow_symlinks=False)
    except OSError as error:
        skipped.append(Skipped(entry.path, error.strerror or str(error)))
        return None
    if stat.S_ISLNK(info.st_mode):
        return Node(entry.path, "link", 0, info.st_mtime_ns)
    if stat.S_ISDIR(info.st_mode):
        if entry.name == LEFT_OUT_FOLDER:
            skipped.append(Skipped(entry.path, "may change at any time"))
            return None
        return Node(entry.path, "folder")
    if not stat.S_ISREG(info.st_mode):
        skipped.append(Skipped(entry.path, "neither file, folder nor link"))
        return None
    if not os.access(entry.path, os.R_OK):
        skipped.append(Skipped(entry.path, "cannot be read"))
        return None
    return Node(entry.path, "file", info.st_size, info.st_mtime_ns)


def _children_first(found: list[Node], parents: list[int]) -> list[Node]:
    """The nodes that have a path, backwards, with their children filled in."""
    nodes: list[Node] = []
    place_of: dict[int, int] = {}
    for place in range(len(found) - 1, -1, -1):
        if found[place].path:
            place_of[place] = len(nodes)
            nodes.append(found[place])
    for place, parent in enumerate(parents):
        if parent >= 0:
            found[parent].children.append(place_of[place])
    return nodes


def compute(tree: Tree) -> list[str]:
    """The digest of each node, one after the other in this process; raises OSError."""
    digests: list[str] = []
    for node in tree.nodes:
        if node.kind == "folder":
            listing = [
                Listed(tree.nodes[child].name, tree.nodes[child].kind, digests[child])
                for child in node.children
            ]
            digests.append(folder_digest(listing))
        else:
            digests.append(leaf_digest(node.path, node.kind))
    return digests


def changed(tree: Tree) -> list[str]:
    """The paths of files and links that have been written to or gone away since the scan."""
    paths = []
    for node in tree.nodes:
        if node.kind == "folder":
            continue
        try:
            info = os.lstat(node.path)
        except OSError:
            paths.append(node.path)
            continue
        size_bytes = info.st_size if node.kind == "file" else 0
        if (size_bytes, info.st_mtime_ns) != (node.size_bytes, node.modified_ns):
            paths.append(node.path)
    return paths


def folder_digest(entries: Iterable[Listed]) -> str:
    """The digest of a folder with ``entries``, given in any order."""
    lines = (f"{kind} {digest} {name}\n" for name, kind, digest in sorted(entries))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def leaf_digest(path: str, kind: str) -> str:
    """The digest of a file or a link; raises OSError if it is no longer what ``kind`` says."""
    if kind == "link":
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    # Something else may stand there since the scan: a pipe must not hold this up for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path} is no longer a file")
        digest = hashlib.sha256()
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def encode_path(path: str) -> str:
    """The path in plain ASCII, whatever bytes it holds: percent-encoded where need be."""
    return quote_from_bytes(os.fsencode(path))


def decode_path(text: str) -> str:
    """The path that `encode_path` encoded."""
    return os.fsdecode(unquote_to_bytes(text))
