"""The terms on which jobs are enqueued, as stores keep them."""

from __future__ import annotations

import msgspec

from worker_sdk.messages import Backoff, NewJob


class StoredTerms(msgspec.Struct, omit_defaults=True):
    """Terms as a store keeps them: the fields of NewJob of the same names."""

    priority: int = 0
    delay: float | None = None
    timeout: float | None = None
    expires: float | None = None
    max_attempts: int = 3
    backoff: Backoff | float | None = None
    inputs: bool = True


decode_terms = msgspec.json.Decoder(StoredTerms).decode
_encode_terms = msgspec.json.Encoder().encode
_DEFAULT_BACKOFF = Backoff()


def terms_key(spec: NewJob | StoredTerms) -> tuple[object, ...]:
    """Give what is the same for two jobs that ask for the same terms."""
    return (
        spec.priority,
        spec.delay or 0.0,
        spec.timeout,
        spec.expires,
        spec.max_attempts,
        spec.backoff,
        spec.inputs,
    )


def backoff_of(spec: NewJob | StoredTerms) -> Backoff:
    """Give the back-off that `spec` asks for."""
    if spec.backoff is None:
        return _DEFAULT_BACKOFF
    return spec.backoff if isinstance(spec.backoff, Backoff) else Backoff(first=spec.backoff)


def _canonical(backoff: Backoff) -> Backoff:
    """Give the same back-off with nothing said that is the default anyway."""
    names = Backoff.__struct_fields__
    said = {name: getattr(backoff, name) for name in names}
    return Backoff(**{x: said[x] for x in names if said[x] != getattr(_DEFAULT_BACKOFF, x)})


def encode_terms(spec: NewJob | StoredTerms) -> bytes:
    """Give the terms that `spec` asks for in the form that a store keeps, the same for the same."""
    backoff = backoff_of(spec)
    return _encode_terms(
        StoredTerms(
            priority=spec.priority,
            delay=spec.delay or None,
            timeout=spec.timeout,
            expires=spec.expires,
            max_attempts=spec.max_attempts,
            backoff=None if backoff == _DEFAULT_BACKOFF else _canonical(backoff),
            inputs=spec.inputs,
        )
    )
