"""Names of keys and channels in Redis: every key of an entry, and the versions of its tags, share one bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.templates import namespace_tag

_NAMESPACE: Final = namespace_tag()


@dataclass(frozen=True, slots=True)
class Layout:
    """The key names of one namespace.

    Args:
        namespace: Prefix of all of them.
        buckets: Hash tags that entries are spread over: 1 on a single server.
    """

    namespace: str
    buckets: int = 1

    def bucket(self, digest: str) -> int:
        """The bucket of an entry."""
        return int(digest[:8], 16) % self.buckets if self.buckets > 1 else 0

    def entry(self, digest: str) -> str:
        """The envelope."""
        return f"{self.namespace}:{{{self.bucket(digest)}}}:e:{digest}"

    def entry_and_versions(self, digest: str, tags: Sequence[str], run_id: str) -> list[str]:
        """What a read asks for."""
        bucket = self.bucket(digest)
        return [f"{self.namespace}:{{{bucket}}}:e:{digest}", *self.versions(bucket, tags, run_id)]

    def own(self, digest: str) -> tuple[str, str, str, str]:
        """All keys of an entry's own: the envelope, who computes, whom to wake, what a leader left."""
        head = f"{self.namespace}:{{{self.bucket(digest)}}}:"
        return f"{head}e:{digest}", f"{head}l:{digest}", f"{head}w:{digest}", f"{head}o:{digest}"

    def lease(self, digest: str) -> str:
        """Who computes."""
        return f"{self.namespace}:{{{self.bucket(digest)}}}:l:{digest}"

    def waiters(self, digest: str) -> str:
        """Whom to wake."""
        return f"{self.namespace}:{{{self.bucket(digest)}}}:w:{digest}"

    def left(self, digest: str) -> str:
        """What a leader left to those who waited for it."""
        return f"{self.namespace}:{{{self.bucket(digest)}}}:o:{digest}"

    def versions(self, bucket: int, tags: Sequence[str], run_id: str) -> list[str]:
        """The tags' versions; the namespace's own ends in the server's identity, so that a server which comes back
        with old data starts cold."""
        head = f"{self.namespace}:{{{bucket}}}:t:"
        return [f"{head}{tag}:{run_id}" if tag == _NAMESPACE else head + tag for tag in tags]

    @property
    def prefixes_of_versions(self) -> list[str]:
        """What the keys of the tags' versions begin with, one prefix for each bucket."""
        return [f"{self.namespace}:{{{bucket}}}:t:" for bucket in range(self.buckets)]

    def tag_of(self, key: str, run_id: str) -> str | None:
        """The tag whose version a key holds, the inverse of `versions`; ``None`` if it is none of this server's."""
        head, found, tag = key.partition("}:t:")
        if not found or not head.startswith(f"{self.namespace}:{{"):
            return None
        if tag.startswith(f"{_NAMESPACE}:"):
            return _NAMESPACE if tag == f"{_NAMESPACE}:{run_id}" else None
        return tag

    def log(self, bucket: int) -> str:
        """Which tags were invalidated lately, for those whose results give tags."""
        return f"{self.namespace}:{{{bucket}}}:inv"

    def stats(self, name: str) -> str:
        """What was counted: of a task (escaped, as a tag is), or one of the library's own names beside these.

        In one slot of a cluster, as one script adds to all of them.
        """
        return f"{self.namespace}:{'{stats}' if self.buckets > 1 else 'stats'}:{name}"

    @property
    def announcements(self) -> str:
        """The channel of invalidations."""
        return f"{self.namespace}:inv"

    @property
    def inboxes(self) -> str:
        """The prefix of the channels of single processes."""
        return f"{self.namespace}:in:"
