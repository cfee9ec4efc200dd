"""What a recipe's stream teaches: its tasks, and easier ones beside them, each with its share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .icl import Stream
from .stream_config import LessonSection, StreamSection


@dataclass(frozen=True)
class Topic:
    """Tasks of one kind. counts: the numbers of shots that a prompt of them has."""

    share: float
    stream: Stream
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Course:
    """stream, counts: the tasks that exams ask. topics: what training draws from, by their shares."""

    stream: Stream
    counts: tuple[int, ...]
    topics: tuple[Topic, ...]

    @classmethod
    def of(cls, stream: StreamSection, lessons: Sequence[LessonSection], counts: tuple[int, ...]) -> "Course":
        """From a recipe's `data`; without lessons the stream itself is the only topic.

        Raises UsageError for a stream that cannot be."""
        whole = Stream(**stream.model_dump())
        topics = []
        for lesson in lessons or (LessonSection(share=1.0),):
            said = lesson.model_dump(include={"pool", "content", "filler", "noise"}, exclude_none=True)
            shots = counts if lesson.shots is None else (lesson.shots,)
            topics.append(Topic(lesson.share, replace(whole, **said), shots))
        return cls(whole, counts, tuple(topics))
