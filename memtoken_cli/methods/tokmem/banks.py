"""Contestants that are banks: one set of control rows under every router, trained addresses, and procedures
that are added in blocks."""

from __future__ import annotations

from collections.abc import Sequence

from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.bank_file import memory
from memtoken_cli.methods.tokmem.config import FINAL, Config
from memtoken_cli.methods.tokmem.cost import Cost, metered
from memtoken_cli.methods.tokmem.curve import Point
from memtoken_cli.methods.tokmem.exam import Choice, Question, choices, mark_replies, mark_routes
from memtoken_cli.methods.tokmem.exam_config import RowName
from memtoken_cli.methods.tokmem.replies import Examined, Names, gold
from memtoken_cli.methods.tokmem.routers import ROUTERS, Router, fit
from memtoken_cli.methods.tokmem.setting import Done, Setting, Sit
from memtoken_cli.methods.tokmem.sheets import Sheet

CONTROL: tuple[RowName, ...] = (
    "tokmem-lda", "tokmem-lda-final", "oracle", "minilm-1nn", "minilm-centroid", "minilm-lda",
    "tfidf-centroid",
)  # fmt: skip


def control(setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
    """Control rows trained once, under every router: the bank's own, final states alone, texts, gold."""
    asked, done = setting.asked, Done()
    config = _config(setting, address="lda")
    name = f"lda/seed-{seed}"
    bank, cost = _joint(setting, name, config, seed)
    examined = setting.examined(bank)
    size = setting.size(name) or memory(bank).nbytes
    spent = _spent(bank, cost, size)
    final = None
    if "tokmem-lda-final" in wanted:
        alone = config.model_copy(update={"lda": config.lda.model_copy(update={"features": (FINAL,)})})
        final = setting.examined(setting.untrained(alone, setting.found, seed))

    routers: dict[str, Router] = {
        row: fit(
            row,
            bank.names,
            setting.labelled("train"),
            setting.labelled("val"),
            None if row == "tfidf-centroid" else setting.encoder,
            config.lda.shrinkage,
        )
        for row in ROUTERS
        if row in wanted
    }

    def routes(row: str, some: Sequence[Question]) -> list[Choice]:
        if row == "tokmem-lda-final" and final is not None:
            return final.routes(some)
        if row in routers:
            return choices(routers[row].log_probs([q.query for q in some]), bank.names, some)
        return examined.routes(some)

    for row in CONTROL:
        if row not in wanted:
            continue
        sheet = Sheet(row, seed)
        # others than the bank itself route single questions alone
        places = range(len(asked)) if row in ("tokmem-lda", "oracle") else setting.single
        some = [asked[i] for i in places]
        if row == "oracle":
            chosen: list[Names] = gold(some)
        else:
            routed = routes(row, some)
            mark_routes(sheet, some, routed)
            chosen = examined.own(routed) if row == "tokmem-lda" else [c.ranked[:1] for c in routed]
        if setting.bench.generate:
            mark_replies(sheet, some, examined.replies(some, chosen, setting.bench.max_new_tokens))
            again = setting.examined(bank)

            def answer(one: Sequence[Question], new: int, row: str = row, again: Examined = again) -> object:
                again.memo = {}
                names = gold(one) if row == "oracle" else [c.ranked[:1] for c in routes(row, one)]
                return again.replies(one, names, new)

            sheet.cost["first_token_seconds"] = setting.latency(answer)
        sheet.cost |= spent
        if len(some) < len(asked):
            _spread(sheet, places, len(asked))
        done.sheets.append(sheet)
    return done


def trained(row: RowName, address: str) -> Sit:
    """Trained addresses, all procedures at once."""

    def sit(setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
        name = f"{row}/seed-{seed}"
        config = _routing(setting, _config(setting, address=address))
        bank, cost = setting.trained(name, config, setting.found, seed)
        sheet = _banked(setting, row, seed, bank)
        sheet.cost |= _spent(bank, cost, setting.size(name))
        return Done([sheet])

    return sit


def sequential(row: RowName, address: str, replay: str = "none", renorm: str = "none") -> Sit:
    """Procedures added in blocks, each to the bank of those before."""

    def sit(setting: Setting, seed: int, wanted: frozenset[str]) -> Done:
        config = _config(setting, address=address, replay=replay, renorm=renorm)
        if address != "lda":
            config = _routing(setting, config)
        steps, bank, done = setting.blocks(), None, Done()
        total, name = Cost(), ""
        single = [setting.asked[i] for i in setting.single]
        opening = set(steps[0].names)
        for number, step in enumerate(steps, 1):
            name = f"{row}/{len(steps)}-blocks/seed-{seed}/block-{number}"
            if address == "lda" and not setting.bench.generate:
                with metered(setting.backbone.device) as cost:
                    new = setting.untrained(config, step, seed)
                    bank = new if bank is None else bank.append(new)
            else:
                bank, cost = setting.trained(name, config, step, seed, bank)
            total.seconds += cost.seconds
            total.peak_bytes = max(total.peak_bytes, cost.peak_bytes)
            some = [q for q in single if q.gold[0] in bank.names]
            hits = _hits(setting, bank, some)
            first = [hit for hit, q in zip(hits, some, strict=True) if q.gold[0] in opening]
            joint = None
            if address == "lda":
                whole = setting.untrained(config, setting.up_to(steps[:number]), seed)
                found = _hits(setting, whole, some)
                joint = sum(found) / len(found)
            point = Point(row, number, len(bank), sum(hits) / len(hits), sum(first) / len(first), joint)
            done.points.append(point)
        assert bank is not None
        sheet = _banked(setting, row, seed, bank)
        size = setting.size(name) or memory(bank).nbytes
        sheet.cost |= _spent(bank, total, size)
        done.sheets.append(sheet)
        return done

    return sit


def _banked(setting: Setting, name: str, seed: int, bank: Bank) -> Sheet:
    """Marks and latency of a bank that routes by itself."""
    sheet, examined = Sheet(name, seed), setting.examined(bank)
    routed = examined.routes(setting.asked)
    mark_routes(sheet, setting.asked, routed)
    if setting.bench.generate:
        new = setting.bench.max_new_tokens
        mark_replies(sheet, setting.asked, examined.replies(setting.asked, examined.own(routed), new))
        again = Examined(setting.backbone, bank)
        sheet.cost["first_token_seconds"] = setting.latency(lambda q, n: again.replies(q, [None], n))
    return sheet


def _joint(setting: Setting, name: str, config: Config, seed: int) -> tuple[Bank, Cost]:
    if setting.bench.generate:
        return setting.trained(name, config, setting.found, seed)
    with metered(setting.backbone.device) as cost:
        bank = setting.untrained(config, setting.found, seed)
    return bank, cost


def _hits(setting: Setting, bank: Bank, asked: Sequence[Question]) -> list[float]:
    routed = setting.examined(bank).routes(asked)
    return [float(c.ranked[0] == q.gold[0]) for c, q in zip(routed, asked, strict=True)]


def _config(setting: Setting, **changed: str) -> Config:
    """The recipe's, with another address; addresses that are trained look at the final state."""
    config: Config = setting.recipe.config
    update: dict[str, object] = {"bank": None, "replay": "none", "renorm": "none", **changed}
    if changed["address"] != "lda":
        update["lda"] = config.lda.model_copy(update={"features": (FINAL,)})
    return config.model_copy(update=update)


def _routing(setting: Setting, config: Config) -> Config:
    """Where nothing is generated, coupled rows are trained as addresses alone: they are for routing then."""
    if setting.bench.generate or config.address != "coupled":
        return config
    return config.model_copy(update={"address": "decoupled"})


def _spent(bank: Bank, cost: Cost, size: int) -> dict[str, float]:
    moved = bank.control_PkE.numel() + (0 if bank.address_PE is None else bank.address_PE.numel())
    moved += 0 if bank.eoc_E is None else bank.eoc_E.numel()
    return {
        "parameters": moved,
        "memory_bytes": size,
        "train_seconds": cost.seconds,
        "peak_bytes": cost.peak_bytes,
    }


def _spread(sheet: Sheet, places: Sequence[int], count: int) -> None:
    """Marks of some questions at the places of all; the others have none."""
    at = {place: i for i, place in enumerate(places)}
    nan = float("nan")
    sheet.marks = {
        name: [values[at[i]] if i in at else nan for i in range(count)]
        for name, values in sheet.marks.items()
    }
