"""``python -m tests.fuzz.guided codec -max_total_time=60``: bytes that coverage leads.

For where atheris is installed; what follows the target's name is libFuzzer's. It begins with some
of the messages that the rest of this package makes from the protocol's grammar.
"""

import importlib
import importlib.util
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import inputs

MESSAGE_LIMIT = 1 << 20
FIRST_CASES = 1000


def codec(data: bytes) -> None:
    """What a peer may send to the broker: a message, or a refusal of it."""
    module: Any = importlib.import_module("broker.codec")
    try:
        module.decode([b"peer", b"", b"PM1", data], MESSAGE_LIMIT)
    except module.Malformed as malformed:
        module.encode(malformed.error)


def sdk(data: bytes) -> None:
    """What a broker may send to a client and to a worker: a message, or a ProtocolError."""
    encoding: Any = importlib.import_module("worker_sdk.encoding")
    errors: Any = importlib.import_module("worker_sdk.errors")
    for unpack in (encoding.unpack_reply, encoding.unpack_worker_event):
        try:
            unpack([b"", b"PM1", data])
        except errors.ProtocolError:
            continue


TARGETS: dict[str, Callable[[bytes], None]] = {"codec": codec, "sdk": sdk}


def main(arguments: list[str]) -> None:
    """Run the target that the first argument names, for as long as the others say."""
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"which target? There are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install atheris, or use python -m tests.fuzz")
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["broker", "worker_sdk"]):
        importlib.import_module("broker.codec")
        importlib.import_module("worker_sdk.encoding")
    corpus = Path(tempfile.mkdtemp(prefix="pointsman-fuzz-"))
    for number in range(FIRST_CASES):
        (corpus / str(number)).write_bytes(inputs.payload(random.Random(number)))
    atheris.Setup([sys.argv[0], *arguments[1:], str(corpus)], TARGETS[arguments[0]])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
