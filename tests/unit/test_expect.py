"""What a bench is held against: margins at the worst ratio, and lines that name what fell short."""

from memtoken_cli.engine.expect import figures, margins, unmet

ROWS = [
    {"method": name, "ratio": ratio, "accuracy": value}
    for name, ratio, value in [
        ("full", None, 0.9),
        ("fewer", 4, 0.5),
        ("fewer", 8, 0.4),
        ("memcom", 4, 0.8),
        ("memcom", 8, 0.6),
        ("memcom-soft", 4, 0.7),
        ("memcom-soft", 8, 0.65),
    ]
]


def test_margins_are_the_least_over_all_ratios() -> None:
    found = {name: round(value, 6) for name, value in margins(ROWS, "memcom").items()}
    assert found == {"over_full": -0.3, "over_fewer": 0.2, "over_soft": -0.05}
    assert figures(ROWS)["memcom-soft_8"] == 0.65 and figures(ROWS)["full"] == 0.9


def test_what_falls_short_is_named() -> None:
    assert unmet({"over_fewer": 0.19, "memcom_4": 0.8, "full": 0.9}, ROWS, "memcom") == []
    assert unmet({"over_fewer": 0.3, "over_nobody": 0.1, "memcom_8": 0.7}, ROWS, "memcom") == [
        "expect.over_fewer: 0.3, found 0.200",
        "expect.over_nobody: 0.1, found nothing",
        "expect.memcom_8: 0.7, found 0.600",
    ]


def test_what_is_no_number_is_below_everything() -> None:
    rows = [{"method": "full", "ratio": None, "accuracy": float("nan")}]
    assert unmet({"full": 0.0}, rows, "memcom") == ["expect.full: 0, found nan"]


def test_rows_without_an_accuracy_meet_nothing() -> None:
    assert unmet({"accuracy": 0.5}, [{"method": "toy", "words": 3}], "toy") == [
        "expect.accuracy: 0.5, found nothing"
    ]
