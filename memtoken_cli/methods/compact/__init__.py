"""compact: closed-form compaction of a prompt's keys and values for a frozen model. Cheap to import."""

from memtoken_cli.engine.method import Method, Spec

SPEC = Spec(
    name="compact",
    paper="ours, after attention matching for KV compaction (2026)",
    line="Closed-form memory of a many-shot prompt: frozen model, nothing trained, seconds.",
    verbs=frozenset({"compress", "generate", "evaluate", "bench"}),
    port="layers",
    sources=frozenset({"shots"}),
    default_for=frozenset({"compress"}),
)


def load() -> Method:
    from .method import Compact

    return Compact()
