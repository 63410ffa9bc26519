"""What goes to a sink at once: with ``write="through"``, and where the journal cannot take it.

It decides under which sequence, and that nothing older comes after something newer; what the sink has got is noted in
the journal, which may hold an older write of the same key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal_port import Journal
from celery_cachetiers.journaling import LocalSequences, Unnoted
from celery_cachetiers.sinks import Sink
from celery_cachetiers.writes import Write


class StraightWay:
    """The way past the journal.

    Concurrency: keeps nothing between writes.

    Args:
        numbers: Whose sequences are drawn, and what is told of what the sink has got; ``None`` where there is no Redis.
        sequences, unnoted: Of this process, for while that does not answer.
        tell: Called with a step and its error, where it went on without the journal.
    """

    def __init__(
        self, sink: Sink, numbers: Journal | None, sequences: LocalSequences, unnoted: Unnoted,
        tell: Callable[[str, TierUnavailable], None],
    ) -> None:  # fmt: skip
        self._sink, self._numbers, self._sequences, self._unnoted = sink, numbers, sequences, unnoted
        self._tell = tell

    def write(self, writes: list[Write]) -> None:
        """Hands them to the sink, in its batches. Raises whatever the sink raises.

        Costs: for each batch, besides the sink, 1 round trip for each write without a sequence, 1 if others have one,
            and 1 to note it.
        """
        size = self._sink.options.batch_size
        for at in range(0, len(writes), size):
            batch = [self._numbered(write) for write in self._standing(writes[at : at + size])]
            self._sink.write(batch)
            self._note([(write.key, write.sequence) for write in batch if write.key])

    def number(self) -> int:
        """A sequence: the journal's next one, or where that does not answer this process' own."""
        if self._numbers is not None:
            try:
                return self._numbers.sequence(self._sink.name)
            except TierUnavailable as error:
                self._tell("draw a sequence", error)
        return self._sequences.draw()

    def _standing(self, writes: list[Write]) -> list[Write]:
        """Those that no newer write of their keys has overtaken in the sink: what a body gives may come late."""
        begun = [(write.key, write.sequence) for write in writes if write.key and write.sequence]
        if not begun or self._numbers is None:
            return writes
        try:
            found = zip(begun, self._numbers.overtaken(self._sink.name, begun), strict=True)
        except TierUnavailable as error:
            self._tell("look into the journal", error)
            return writes
        gone = {each for each, overtaken in found if overtaken}
        return [write for write in writes if (write.key, write.sequence) not in gone]

    def _note(self, taken: list[tuple[str, int]]) -> None:
        """Has the journal remember what the sink has got past it, now or when it answers."""
        if not taken or self._numbers is None:
            return
        try:
            self._numbers.note(self._sink.name, taken)
        except TierUnavailable:
            self._unnoted.add(self._sink.name, taken)

    def _numbered(self, write: Write) -> Write:
        return write if write.sequence else replace(write, sequence=self.number())

    def __repr__(self) -> str:
        return f"<StraightWay to {self._sink.name}>"
