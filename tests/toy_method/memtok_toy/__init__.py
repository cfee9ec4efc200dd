"""A method that needs no model: a shot's token is its bag of words, a query takes the nearest's output."""

from memtoken_cli.engine.method import Method, Spec

SPEC = Spec(
    name="toy",
    paper="none",
    line="Bags of words, for tests.",
    verbs=frozenset({"compress", "generate", "evaluate", "segment", "bench", "train", "bank"}),
    port="prefix",
    sources=frozenset({"shots", "series"}),
    needs_model=False,
)


def load() -> Method:
    from memtok_toy.method import Toy

    return Toy()
