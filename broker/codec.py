"""Frames to typed messages and back, with an answer ready for what is malformed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import msgspec
from msgspec import UNSET, Raw, UnsetType

from broker.core.refusal import listed
from broker.core.workers import Origin
from worker_sdk.messages import PROTOCOL, Enqueue, Error, Id, Message, NewJob, Request

FRAMES_MOST = 16
"""How many frames a message may have: the protocol's three, and envelopes around them."""

encode = msgspec.json.Encoder().encode
"""Gives the JSON frame of a message."""

_REQUESTS = msgspec.json.Decoder(Request)
_JOB = msgspec.json.Decoder(NewJob)
# What canonical ids are alike in: with their digits made zeros they are all the same.
_TO_ZERO = bytes.maketrans(b"123456789abcdef", b"0" * 15)
_ZERO_ID = b"00000000-0000-0000-0000-000000000000"
_NO_UUID = "not a UUID in canonical lower-case form"
_SHOWN_MOST = 100  # characters of what is quoted
_FAULTS_TOLD = 5  # in words; the ids of the others are named
# Looked for in one message: each costs microseconds, and millions fit into 16 MiB.
_FAULTS_MOST = 1000
# Each escape in it costs a third of a microsecond.
_HALVES_SOUGHT_IN_MOST = 65_536
# What is echoed is kept while a request is open, and sent again with its answer: bytes.
_ENVELOPE_MOST = 1024
_REQ_MOST = 1024


class Malformed(Exception):
    """A message that cannot be read; carries where it came from and what to answer."""

    def __init__(self, origin: Origin, error: Error) -> None:
        super().__init__(error.message)
        self.origin = origin
        self.error = error


def decode(frames: Sequence[bytes], message_limit: int) -> tuple[Origin, Message]:
    """Give the sender and the message in the frames that a ROUTER received; raises Malformed."""
    if len(frames) == 4 and not frames[1]:
        origin: Origin = (frames[0], b"")
    else:
        origin = _envelope(frames)
    version, payload = frames[-2:]
    if version != PROTOCOL:
        shown = version[:_SHOWN_MOST].decode("ascii", "backslashreplace")
        raise _malformed(
            origin, "unsupported", f"protocol '{shown}' is not known, this broker speaks PM1"
        )
    if len(payload) > message_limit:
        raise _malformed(
            origin, "too_large", f"{len(payload)} bytes are more than the limit of {message_limit}"
        )
    try:
        if not payload.isascii():
            payload.decode()  # msgspec does not look into strings that it only passes on
        message = _REQUESTS.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(origin, _explain(payload, error)) from None
    if message.req is not UNSET and len(message.req) > _REQ_MOST:
        raise _malformed(origin, "invalid", f"req has more than {_REQ_MOST} bytes")
    if type(message) is Enqueue:
        _check_ids(origin, message)
    return origin, message


def _envelope(frames: Sequence[bytes]) -> Origin:
    """Give the frames up to and with the empty one, if they leave two for the rest."""
    nowhere_better = (frames[0], b"")
    try:
        empty = frames.index(b"", 1)
    except ValueError:
        why = "no empty frame before the protocol's"
        raise _malformed(nowhere_better, "invalid", f"{why}: {_SHAPE}") from None
    origin = tuple(frames[: empty + 1])
    if sum(map(len, origin[1:])) > _ENVELOPE_MOST:
        raise _malformed(
            nowhere_better, "invalid", f"frames before the empty one exceed {_ENVELOPE_MOST} bytes"
        )
    if len(frames) != empty + 3:
        count = len(frames) - empty - 1
        raise _malformed(
            origin, "invalid", f"{count} frames after the empty one are not two: {_SHAPE}"
        )
    return origin


_SHAPE = "a message is the frames [empty] [PM1] [JSON]"


def _malformed(origin: Origin, code: str, message: str) -> Malformed:
    return Malformed(origin, Error(code, message))


def _check_ids(origin: Origin, message: Enqueue) -> None:
    """Refuse ids that are not UUIDs in canonical form."""
    ids = [job.id for job in message.jobs]
    # All together, since that takes a quarter of the time: 0.07 us an id.
    if not _are_canonical("".join(ids), len(ids)):
        wrong = [id for id in ids if not _are_canonical(id, 1)]
        text = f"{_NO_UUID}: {listed(wrong)}"
        raise Malformed(origin, Error("invalid", text, tuple(wrong), req=message.req))


def _are_canonical(text: str, count: int) -> bool:
    """Say whether `text` is `count` UUIDs in canonical form, one right behind the other."""
    return text.encode(errors="replace").translate(_TO_ZERO) == _ZERO_ID * count


# ---- what is wrong with a message: only looked into once it is known that something is ----------


class _Outline(msgspec.Struct):
    """As much of a message as can be read of one that is wrong elsewhere."""

    op: Raw | UnsetType = UNSET
    req: Raw | UnsetType = UNSET
    jobs: list[Raw] | UnsetType = UNSET
    ids: list[Raw] | UnsetType = UNSET


class _Envelope(msgspec.Struct):
    op: Raw | UnsetType = UNSET
    req: Raw | UnsetType = UNSET


class _Named(msgspec.Struct):
    id: str


_NAMED = msgspec.json.Decoder(_Named)
_ID = msgspec.json.Decoder(Id)
# A backslash that stands for itself, a whole pair, or (as a group) one half of a pair.
_HALF = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)", re.DOTALL)
# What a half is replaced by to read the rest: characters that no text has, if not this one.
_MARKS = (rb"\uffff", rb"\ufffe", rb"\ufdd0")
_OUTLINES: msgspec.json.Decoder[_Outline | _Envelope] = msgspec.json.Decoder(_Outline)
_ENVELOPES: msgspec.json.Decoder[_Outline | _Envelope] = msgspec.json.Decoder(_Envelope)


def _explain(payload: bytes, error: Exception) -> Error:
    if isinstance(error, UnicodeDecodeError):
        return Error("invalid", f"not UTF-8: {error.reason} at byte {error.start}")
    if isinstance(error, RecursionError):
        return Error("invalid", "JSON is nested too deeply")
    outline = _outline(payload)
    if outline is None:
        return _explain_halves(payload) or Error("invalid", f"not valid JSON: {error}")
    known = [str(kind.__struct_config__.tag) for kind in Request.__args__]
    op = _text(outline.op)
    if outline.op is UNSET:
        answer = Error("invalid", "the message has no op")
    elif op not in known:
        shown = bytes(outline.op)[:_SHOWN_MOST].decode(errors="replace")
        answer = Error("unsupported", f"op {shown} is not known; there are {', '.join(known)}")
    elif op == "enqueue" and isinstance(outline, _Outline) and outline.jobs is not UNSET:
        answer = _explain_jobs(outline.jobs, error)
    elif isinstance(outline, _Outline) and outline.ids is not UNSET and "`$.ids" in str(error):
        answer = _explain_ids(op, outline.ids, error)
    else:
        answer = Error("invalid", f"{op}: {error}")
    if outline.req is UNSET or len(outline.req) <= _REQ_MOST:
        answer.req = outline.req
    return answer


def _explain_halves(payload: bytes) -> Error | None:
    """Say so if all that is wrong is that some text has one half of a surrogate pair alone."""
    mark = next((mark for mark in _MARKS if mark not in payload), None)
    if mark is None or len(payload) > _HALVES_SOUGHT_IN_MOST:
        return None
    mended = _HALF.sub(lambda found: mark if found[1] else found[0], payload)
    outline = _outline(mended)
    if outline is None or mended == payload:
        return None
    jobs = outline.jobs if isinstance(outline, _Outline) and outline.jobs is not UNSET else []
    ids = [_id_of(raw) for raw in jobs if mark in bytes(raw)]
    text = "not valid JSON: one half of a surrogate pair stands alone, which is no character"
    req = outline.req
    if isinstance(req, Raw) and (mark in bytes(req) or len(req) > _REQ_MOST):
        req = UNSET
    return Error("invalid", text, tuple([id for id in ids if id is not None]), req=req)


def _explain_ids(op: str | None, ids: list[Raw], error: Exception) -> Error:
    """Name the ids that are none, if that is what is wrong."""
    found = (text for raw in ids if (text := _wrong_id(raw)) is not None)
    wrong = list(islice(found, _FAULTS_MOST))
    if not wrong:
        return Error("invalid", f"{op}: {error}")
    return Error("invalid", f"{op}: {error}: {listed(wrong)}", tuple(wrong))


def _wrong_id(raw: Raw) -> str | None:
    """Give what stands in place of an id, if it is none."""
    try:
        _ID.decode(raw)
    except msgspec.DecodeError:
        return (_text(raw) or bytes(raw).decode(errors="replace"))[:_SHOWN_MOST]
    return None


def _outline(payload: bytes) -> _Outline | _Envelope | None:
    for decoder in (_OUTLINES, _ENVELOPES):
        try:
            return decoder.decode(payload)
        except msgspec.ValidationError:
            # Before what is no JSON, perhaps: the next one may still find that.
            continue
        except (msgspec.DecodeError, RecursionError):
            return None
    return _Envelope()


def _text(raw: Raw | UnsetType) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str) if isinstance(raw, Raw) else None
    except msgspec.DecodeError:
        return None


def _explain_jobs(jobs: list[Raw], error: Exception) -> Error:
    """Name the jobs that are wrong: all, if they are not very many."""
    faults: list[str] = []
    culprits: list[str] = []
    for number, raw in enumerate(jobs):
        fault = _fault_of(raw)
        if fault is None:
            continue
        faults.append(f"jobs[{number}]: {fault}")
        id = _id_of(raw)
        if id is not None:
            culprits.append(id)
        if len(faults) >= _FAULTS_MOST:
            break
    if not faults:
        return Error("invalid", f"enqueue: {error}")
    text = "; ".join(faults[:_FAULTS_TOLD])
    if len(faults) >= _FAULTS_MOST:
        text += f" and more: {_FAULTS_MOST} jobs are named, the others were not looked at"
    elif len(faults) > _FAULTS_TOLD:
        text += f" and {len(faults) - _FAULTS_TOLD} more"
    return Error("invalid", text, tuple(culprits))


def _fault_of(raw: Raw) -> str | None:
    """Say what is wrong with one job, if it is."""
    try:
        job = _JOB.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        return str(error)
    return None if _are_canonical(job.id, 1) else f"id {_NO_UUID}"


def _id_of(raw: Raw) -> str | None:
    try:
        return _NAMED.decode(raw).id[:_SHOWN_MOST]
    except (msgspec.DecodeError, RecursionError):
        return None
