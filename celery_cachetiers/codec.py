"""How a value becomes the body of an entry and back: it decides trust and limits, `entry` the layout.

Serializers and compressions are kombu's, by the names Celery's settings use. Redis is not trusted. In this
order an entry must be signed for this very key (where signing is on), be of a content type that Celery
accepts, and stay within ``max_bytes`` while it is decompressed; only then does a decoder see its payload.
"""

from __future__ import annotations

import importlib
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final, Protocol

from kombu.compression import get_encoder
from kombu.exceptions import EncodeError, SerializerNotInstalled
from kombu.serialization import dumps, prepare_accept_content
from kombu.serialization import registry as _registry  # type: ignore[attr-defined]  # not in celery-types 0.26

from celery_cachetiers.entry import Header, RawEntry, Times, pack_body, pack_head, tag_block, unpack
from celery_cachetiers.errors import ConfigurationError, UnusableEntry

MIB: Final = 1024 * 1024
MAX_BYTES: Final = 512 * MIB
"""What Redis takes as one string."""

_SAME_IN_JSON: Final = frozenset({type(None), bool, int})

SIGNATURE_BYTES: Final = 16
_BLAKE_KEY_BYTES: Final = 64
_PURPOSE: Final = b"celery-cachetier"
"""BLAKE2's personalization: the same secret used elsewhere makes no signature that is good here."""

_ENCODERS: Final[Mapping[str, tuple[str, str, Callable[[object], Any]]]] = _registry._encoders
"""kombu's live table of all serializers but ``raw``. ``kombu.serialization.dumps`` asks the same table, and adds one
exception type for all, which `Codec.encode` has too, for 3 µs of every miss."""

_DECODERS: Final[Mapping[str, Callable[[bytes], object]]] = _registry._decoders
"""kombu's live table, asked at every decode. ``kombu.serialization.loads`` asks the same table and adds what
is done here already (the check against ``accept``, one exception type for all), for 1 µs of every hit."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Turns values into bodies and entries into values, for one choice of serializer, limits and keys.

    Attributes:
        serializer: kombu's name of the serializer that writes; its content type must be in ``accept``.
        accept: What is read: names or content types, as in ``accept_content``. Kept as content types.
        compression: kombu's name of a compression, or ``None``. What was written with another stays readable.
        max_bytes: Most bytes of an entry, and of its payload before compression; 1 to 512 MiB.
        signing_keys: The first one signs, each one verifies, so that keys can be rotated. With none, nothing
            is signed or verified: a signed entry is read like any other, so that signing can be switched
            off again. To refuse it would protect nothing where unsigned ones are read.

    Raises:
        ConfigurationError: A value is unknown or out of range, or what it names is not installed. Also for a
            compression whose output cannot be bounded while it is read (brotli, or one of your own).

    Concurrency:
        Immutable: shared by all threads, good after a fork.
    """

    serializer: str
    accept: Iterable[str]
    compression: str | None = None
    max_bytes: int = 16 * MIB
    signing_keys: Sequence[bytes] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        accept = _content_types(self.accept)
        _check_serializer(self.serializer, accept)
        _check_compression(self.compression)
        _check_max_bytes(self.max_bytes)
        object.__setattr__(self, "accept", accept)
        object.__setattr__(self, "signing_keys", _blake_keys(self.signing_keys))

    def encode(self, value: object, times: Times, tags: Sequence[str], key: str, *, readable: bool = False) -> bytes:
        """Return the body of an entry, to which the store appends the stamp.

        Args:
            value: Never changed, whatever the serializer does with it.
            times: Finite.
            tags: Names, in the order of the stamp.
            key: The key it will be stored under; the signature holds for no other.
            readable: Decodes the payload once, to see that it can be: some serializers write what they cannot read.

        Raises:
            UnusableEntry: ``unserializable`` (the serializer's error is the ``__cause__``), ``oversize``,
                ``refused`` (its own ``accept`` would not read it), ``malformed`` (times, number of tags) or
                ``undecodable``.
        """
        content_type, content_encoding, payload = self._serialize(value)
        if readable:
            _decoded(_DECODERS.get(content_type), payload)
        compression, payload = self._compress(payload)
        header = Header(times, len(tags), tag_block(tags), content_type, content_encoding, compression)
        if self.signing_keys:
            header = header._replace(signature=bytes(SIGNATURE_BYTES))
            header = header._replace(signature=_sign(self.signing_keys[0], key, header, payload))
        body = pack_body(header, payload)
        if len(body) > self.max_bytes:
            raise UnusableEntry("oversize")
        return body

    def decode(self, raw: RawEntry | bytes, key: str) -> object:
        """Return the entry's value, made afresh: the caller may change it.

        It equals what ``AsyncResult.get()`` gives for the same value through the same serializer. The stamp
        and the times are the caller's to judge.

        Args:
            raw: The entry, taken apart or as Redis holds it.
            key: The key it was found under.

        Raises:
            UnusableEntry: What `unpack` raises; ``unsigned`` or ``forged`` (no known key has signed it for
                this key); ``refused`` (a content type or a compression that is not accepted); ``oversize``;
                ``bomb`` (past ``max_bytes`` when decompressed); ``undecodable`` (the ``__cause__`` says why).
        """
        if isinstance(raw, bytes):
            raw = unpack(raw)
        if self.signing_keys:
            self._verify(raw, key)
        header, payload, _ = raw
        decoder = _DECODERS.get(header.content_type)
        if header.content_type not in self.accept:
            raise UnusableEntry("refused")
        if len(payload) > self.max_bytes:
            raise UnusableEntry("oversize")
        if header.compression:
            payload = _decompress(payload, header.compression, self.max_bytes)
        return _decoded(decoder, payload)

    def gives_back(self, value: object) -> bool:
        """Whether decoding what `encode` made of a value gives that very value, so that nobody has to try.

        Of JSON that is true of ``None``, truth values, whole numbers and ASCII text.
        """
        kind = type(value)
        if self.serializer != "json":
            return False
        return kind in _SAME_IN_JSON or (kind is str and value.isascii())  # type: ignore[attr-defined]

    def _serialize(self, value: object) -> tuple[str, str, bytes]:
        try:
            if self.serializer in _ENCODERS:
                content_type, content_encoding, encode = _ENCODERS[self.serializer]
                payload = _as_bytes(encode(value))
            else:
                content_type, content_encoding, serialized = dumps(value, serializer=self.serializer)
                payload = _as_bytes(serialized)
        except Exception as error:
            raise UnusableEntry("unserializable") from error
        if content_type not in self.accept:
            raise UnusableEntry("refused")
        if len(payload) > self.max_bytes:
            raise UnusableEntry("oversize")
        return content_type, content_encoding, payload

    def _compress(self, payload: bytes) -> tuple[str, bytes]:
        if self.compression is None:
            return "", payload
        compress, name = _compressor(self.compression)
        compressed = compress(payload)
        return (name, compressed) if len(compressed) < len(payload) else ("", payload)

    def _verify(self, raw: RawEntry, key: str) -> None:
        signature = raw.header.signature
        if not signature:
            raise UnusableEntry("unsigned")
        for signing_key in self.signing_keys:
            if compare_digest(_sign(signing_key, key, raw.header, raw.payload), signature):
                return
        raise UnusableEntry("forged")


def _decoded(decoder: Callable[[bytes], object] | None, payload: bytes) -> object:
    if decoder is None:
        raise UnusableEntry("refused")
    try:
        return decoder(payload)
    except Exception as error:
        raise UnusableEntry("undecodable") from error


def _sign(signing_key: bytes, key: str, header: Header, payload: bytes) -> bytes:
    """Cover the key and the whole body but the signature's own bytes (its length is covered, too).

    The stamp stays outside: it is not known yet, and a forged one equals no tag version in Redis.
    """
    name = key.encode("utf-8", "surrogatepass")
    digest = blake2b(key=signing_key, digest_size=SIGNATURE_BYTES, person=_PURPOSE)
    digest.update(len(name).to_bytes(4, "little"))
    digest.update(name)
    digest.update(pack_head(header))
    digest.update(payload)
    return digest.digest()


def _as_bytes(serialized: object) -> bytes:
    """Serializers return text or bytes; the result backends store text as UTF-8."""
    if isinstance(serialized, bytes):
        return serialized
    if isinstance(serialized, str):
        return serialized.encode("utf-8")
    if isinstance(serialized, bytearray | memoryview):
        return bytes(serialized)
    raise TypeError(f"the serializer returned {type(serialized).__name__}, not bytes or str")


class _Decompressor(Protocol):
    """What zlib, bz2, lzma and zstd share: output stops at ``max_length``, however much is still to come."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _stdlib(module: str, name: str, **arguments: object) -> Callable[[], _Decompressor]:
    """Import at use: a Python may have been built without it, and then kombu does not offer it either."""

    def make() -> _Decompressor:
        decompressor: _Decompressor = getattr(importlib.import_module(module), name)(**arguments)
        return decompressor

    return make


_DECOMPRESSORS: Final[Mapping[str, Callable[[], _Decompressor]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": _stdlib("bz2", "BZ2Decompressor"),
    # lzma's header says how much memory to take; its strongest preset needs 65 MiB.
    "application/x-lzma": _stdlib("lzma", "LZMADecompressor", memlimit=128 * MIB),
    "application/zstd": _stdlib(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd", "ZstdDecompressor"
    ),
}
"""By kombu's names. ``kombu.compression.decompress`` has no limit, so a few KB could ask for gigabytes."""


def _decompress(payload: bytes, compression: str, limit: int) -> bytes:
    make = _DECOMPRESSORS.get(compression)
    if make is None:
        raise UnusableEntry("refused")
    try:
        decompressor = make()
        plain = decompressor.decompress(payload, limit + 1)
    except Exception as error:
        raise UnusableEntry("undecodable") from error
    if len(plain) > limit:
        raise UnusableEntry("bomb")
    if not decompressor.eof or decompressor.unused_data:
        raise UnusableEntry("undecodable")
    return plain


def _compressor(name: str) -> tuple[Callable[[bytes], bytes], str]:
    """Return kombu's function and the content type it is known by."""
    pair: Any = get_encoder(name)  # celery-types 0.26 says that it returns the function alone
    function, content_type = pair
    return function, content_type


def _content_types(accept: Iterable[str] | None) -> frozenset[str]:
    allowed = "a list of serializer names that kombu knows, or of content types"
    if accept is None or isinstance(accept, str):
        raise ConfigurationError("result_accept_content", accept, allowed)
    try:
        return frozenset(prepare_accept_content(accept) or ())
    except (SerializerNotInstalled, TypeError) as error:
        raise ConfigurationError("result_accept_content", accept, allowed) from error


def _check_serializer(serializer: str, accept: frozenset[str]) -> None:
    content_type = _registry.name_to_type.get(serializer)
    if content_type not in _DECODERS:
        known = ", ".join(sorted(_registry.name_to_type))
        raise ConfigurationError("cachetiers_serializer", serializer, f"one of {known}")
    try:
        dumps(None, serializer=serializer)
    except SerializerNotInstalled as error:
        raise ConfigurationError("cachetiers_serializer", serializer, f"not usable here: {error}") from error
    except EncodeError:
        pass  # installed, and None is not among its values
    if content_type not in accept:
        allowed = f"its content type {content_type} must be in accept_content (or result_accept_content)"
        raise ConfigurationError("cachetiers_serializer", serializer, allowed)


def _check_compression(compression: str | None) -> None:
    if compression is None:
        return
    allowed = "one of gzip, bzip2, lzma, zstd, as far as they are installed"
    try:
        _, content_type = _compressor(compression)
        _DECOMPRESSORS[content_type]()
    except (KeyError, TypeError, ImportError) as error:
        raise ConfigurationError("cachetiers_compression", compression, allowed) from error


def _check_max_bytes(max_bytes: object) -> None:
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or not 1 <= max_bytes <= MAX_BYTES:
        raise ConfigurationError("cachetiers_max_bytes", max_bytes, f"a whole number from 1 to {MAX_BYTES}")


def _blake_keys(keys: Sequence[object]) -> tuple[bytes, ...]:
    """Return the keys as BLAKE2 takes them, at most 64 bytes long; an empty one would sign nothing."""
    good = [key for key in keys if isinstance(key, bytes) and key]
    if len(good) != len(keys):
        raise ConfigurationError("cachetiers_signing_key", "(hidden)", "a sequence of keys, bytes, not empty")
    return tuple(key if len(key) <= _BLAKE_KEY_BYTES else blake2b(key).digest() for key in good)
