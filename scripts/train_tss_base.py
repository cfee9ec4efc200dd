"""Trains the shipped segmentation model from seeded generated series alone and writes the asset.

    python scripts/train_tss_base.py [--steps N] [--episodes N] [--rounds N] [--seed 0] [--out FILE] [--check]

First encoder and read-out, on episodes: prompts come from clicks on the current prediction; in three of ten
they stand on another series of the same world. Then the weights of the experts (`mix.py`), with everything
else fixed, on episodes of click simulation. --check repeats the first 200 episodes and compares their loss
with the asset's.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memtoken_cli.data.states import Sample, make
from memtoken_cli.io import artifact
from memtoken_cli.methods.memprompttss import encode, experts, mix, tss
from memtoken_cli.methods.memprompttss.encode import centres
from memtoken_cli.methods.memprompttss.hand import standardise, zscore
from memtoken_cli.methods.memprompttss.potts import decode
from memtoken_cli.methods.memprompttss.potts_sums import crf_nll, marginals
from memtoken_cli.methods.memprompttss.read import pooled
from memtoken_cli.methods.memprompttss.tss import CONTEXT, REACH

ROWS, LONG, STRIDE = (4096, 8192), (8192, 16_384), 8  # lengths take turns
BATCH = 4  # series a step
ELSEWHERE, WRONG, INTERVALS = 0.3, 0.05, 0.25
MOST_CLICKS = 12
MOST_CHANNELS = 8
PROBE = 200  # episodes whose mean loss --check compares
ASSET = Path(__file__).parent.parent / "memtoken_cli" / "assets" / f"{tss.NAME}.safetensors"


@dataclass(frozen=True)
class Drawn:
    """A series to score on and the one that its prompts stand on (perhaps the same): inputs and states of
    tokens."""

    x_NCf: np.ndarray
    states_N: np.ndarray
    from_NCf: np.ndarray
    from_states_N: np.ndarray
    same: bool

    def view(self) -> tuple[experts.View, Tensor]:
        """Hand features of the series scored in its metric, and those where prompts stand."""
        own, other = (_hand(x) for x in (self.x_NCf, self.from_NCf))
        gap_N = torch.zeros(len(own), dtype=torch.bool)
        return experts.view(own, gap_N, self.x_NCf.shape[1]), other


def draw(seed: int, lengths: Sequence[int] = ROWS) -> Drawn:
    """One episode's series, by its seed."""
    generator = np.random.default_rng([7, seed])
    channels = int(np.exp(generator.uniform(0, np.log(MOST_CHANNELS + 1))))
    rows = lengths[seed // BATCH % len(lengths)]
    if generator.random() < ELSEWHERE:
        a, b = make(generator, rows=rows, channels=channels, pair=True)
        return Drawn(*_tokens(b), *_tokens(a), False)
    x, states = _tokens(make(generator, rows=rows, channels=channels))
    return Drawn(x, states, x, states, True)


def _tokens(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    x_TC, _, _ = zscore(sample.values_TC)
    return encode.inputs(x_TC, STRIDE), sample.states_T[centres(len(x_TC), STRIDE)]


def _hand(x_NCf: np.ndarray) -> Tensor:
    part = x_NCf[:, :, encode.PATCH : encode.PATCH + sum(encode.PER_WINDOW)]
    return torch.from_numpy(standardise(part.reshape(len(part), -1)))


def batches(first: int, count: int) -> Iterator[list[Drawn]]:
    """Series drawn ahead in another process, in order."""
    with ProcessPoolExecutor(1) as pool:
        ahead: list[Future[Drawn]] = []
        wanted = iter(range(first * BATCH, (first + count) * BATCH))
        for _ in range(count):
            while len(ahead) < 3 * BATCH and (seed := next(wanted, None)) is not None:
                ahead.append(pool.submit(draw, seed))
            yield [ahead.pop(0).result() for _ in range(BATCH)]


@dataclass
class Told:
    """Clicks of an episode: spans of tokens and their states."""

    spans: list[tuple[int, int]]
    states: list[int]


def clicks(
    network: tss.Network,
    drawn: Drawn,
    from_ND: Tensor,
    space: experts.View,
    generator: np.random.Generator,
) -> Told:
    """Points and intervals: the middle of the longest segment, then the middles of wrong runs of what is
    predicted from those so far."""
    states_N = drawn.from_states_N
    told = Told([], [])
    _click(told, states_N, np.ones(len(states_N), dtype=bool), generator)
    for _ in range(int(generator.integers(1, MOST_CLICKS))):
        known = sorted(set(told.states))
        if len(known) > 1:
            with torch.no_grad():
                cost_NK = costs(network, from_ND, space, written(network, from_ND, space.x_NF, told, True))
            wrong_N = np.array(known)[cost_NK.argmin(1).numpy()] != states_N
        else:
            wrong_N = states_N != known[0]
        if not wrong_N.any():
            break
        _click(told, states_N, wrong_N, generator)
    return told


def _click(told: Told, states_N: np.ndarray, wrong_N: np.ndarray, generator: np.random.Generator) -> None:
    if generator.random() < 0.3:
        at = int(generator.choice(np.flatnonzero(wrong_N)))
    else:
        key_N = np.where(wrong_N, states_N, -1)
        cuts = np.flatnonzero(np.diff(key_N)) + 1
        starts, ends = np.append(0, cuts), np.append(cuts, len(key_N))
        longest = int(np.where(key_N[starts] >= 0, ends - starts, 0).argmax())
        at = int((starts[longest] + ends[longest]) // 2)
    state = int(states_N[at])
    span = (at, at + 1)
    if generator.random() < INTERVALS:
        low, high = at, at + 1
        while low > max(0, at - 20) and states_N[low - 1] == state:
            low -= 1
        while high < min(len(states_N), at + 20) and states_N[high] == state:
            high += 1
        span = (low, high)
    if told.states and generator.random() < WRONG:
        state = int(generator.choice(told.states))
    told.spans.append(span)
    told.states.append(state)


@dataclass(frozen=True)
class Bank:
    """Clicks as the experts see them: memory tokens, neighbourhoods of hand features, slots."""

    token_PD: Tensor
    features: list[Tensor]
    told: experts.Told


def written(network: tss.Network, from_ND: Tensor, from_NF: Tensor, told: Told, same: bool) -> Bank:
    known = sorted(set(told.states))
    slot_P = torch.tensor([known.index(s) for s in told.states])
    rows, near = [], []
    for start, end in told.spans:
        point = end == start + 1
        low, high = (max(0, start - CONTEXT), start + CONTEXT + 1) if point else (start, end)
        context_MD = from_ND[low:high]
        away_M = torch.arange(low, low + len(context_MD)) - start if point else torch.zeros(end - start)
        rows.append(network.reader.write(context_MD, away_M, 0))
        near.append(from_NF[max(0, start - REACH) : start + REACH + 1] if point else from_NF[start:end])
    span_P2 = torch.tensor(told.spans) if same else torch.full((len(slot_P), 2), -1)
    return Bank(torch.stack(rows), near, experts.Told(slot_P, len(known), span_P2))


def costs(network: tss.Network, embed_ND: Tensor, space: experts.View, bank: Bank) -> Tensor:
    """[N,K] what the read-out adds to the experts that need no training: it learns what they miss."""
    told = bank.told
    cost_NK = -pooled(network.reader.scores(embed_ND, bank.token_PD), told.slot_P, told.K)
    fixed = mix.START[0] * experts.near(space, told, bank.features).cost_NK
    return cost_NK + fixed + mix.START[3] * experts.time(told, len(embed_ND)).cost_NK


def loss_of(network: tss.Network, batch: list[Drawn], step: int, log_lam: Tensor) -> Tensor:
    """Mean negative log-likelihood of the chain a token, and half the cross-entropy before it."""
    generator = np.random.default_rng([11, step])
    embeds = [network.encoder.channels(torch.from_numpy(d.x_NCf)) for d in batch]
    others = [network.encoder.channels(torch.from_numpy(d.from_NCf)) for d in batch if not d.same]
    timed_BND = network.encoder.time(torch.stack([*embeds, *others]))
    rest = iter(timed_BND[len(batch) :])
    total = torch.zeros(())
    for drawn, embed_ND in zip(batch, timed_BND, strict=False):
        from_ND = embed_ND if drawn.same else next(rest)
        space, from_NF = drawn.view()
        own = space if drawn.same else experts.view(from_NF, torch.zeros(len(from_NF), dtype=torch.bool), 1)
        told = clicks(network, drawn, from_ND.detach(), own, generator)
        known = sorted(set(told.states))
        target_N = np.full(len(drawn.states_N), -1)
        for k, state in enumerate(known):
            target_N[drawn.states_N == state] = k
        if len(known) < 2 or not (target_N >= 0).any():
            continue
        cost_NK = costs(network, embed_ND, space, written(network, from_ND, from_NF, told, drawn.same))
        target = torch.from_numpy(target_N)
        nll = crf_nll(cost_NK[None], log_lam.exp()[None], target[None])[0] / len(target)
        ce = torch.nn.functional.cross_entropy(-cost_NK, target, ignore_index=-1)
        total = total + (nll + 0.5 * ce) / len(batch)
    return total


def train_encoder(network: tss.Network, steps: int, seed: int, of: int | None = None) -> list[float]:
    """The loss of every step. of: how many the schedule is for."""
    whole = of or steps
    log_lam = torch.nn.Parameter(torch.tensor(mix.SWITCH).log())
    body = [*network.encoder.parameters(), *network.reader.parameters(), log_lam]
    optimiser = torch.optim.AdamW(body, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98))
    warm = min(100, max(1, whole // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / warm) * (0.5 * (1 + np.cos(np.pi * min(1, s / max(1, whole)))) + 0.01),
    )
    curve = []
    for step, batch in enumerate(batches(seed * 1_000_000, steps)):
        loss = loss_of(network, batch, seed * 1_000_000 + step, log_lam)
        if loss.requires_grad:
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(body, 1.0)
            optimiser.step()
        schedule.step()
        curve.append(float(loss.detach()))
        if step % 50 == 49:
            print(
                f"step {step + 1}: loss {np.mean(curve[-50:]):.4f} lam {float(log_lam.detach().exp()):.2f} "
                f"sharp {float(network.reader.sharp.detach().exp()):.2f}",
                flush=True,
            )
    return curve


@dataclass(frozen=True)
class Heard:
    """What the experts said of one episode."""

    known_Q: Tensor
    said: tuple[experts.Said, ...]
    target_N: Tensor


def hear(network: tss.Network, seed: int) -> Heard | None:
    """One episode of `seed`: clicks on its own series, or k random points of every state of another's; or
    None where that names fewer than two states."""
    generator = np.random.default_rng([13, seed])
    drawn = draw_many(seed) if seed % 3 == 2 else draw(seed, LONG)
    space, from_NF = drawn.view()
    with torch.no_grad():
        both = [network.encoder.channels(torch.from_numpy(x))[None] for x in (drawn.x_NCf, drawn.from_NCf)]
        embed_ND, from_ND = (network.encoder.time(x)[0].half().float() for x in both)
        if drawn.same:
            told = clicks(network, drawn, from_ND, space, generator)
        else:
            told = Told([], [])
            k = int(generator.choice([1, 2, 3, 5]))
            for state in np.unique(drawn.from_states_N):
                at_X = np.flatnonzero(drawn.from_states_N == state)
                for at in generator.choice(at_X, min(k, len(at_X)), replace=False):
                    told.spans.append((int(at), int(at) + 1))
                    told.states.append(int(state))
        bank = written(network, from_ND, from_NF, told, drawn.same)
    known = sorted(set(told.states))
    if len(known) < 2:
        return None
    target_N = np.full(len(drawn.states_N), -1)
    for k, state in enumerate(known):
        target_N[drawn.states_N == state] = k
    said = experts.ask(network.reader, embed_ND, bank.token_PD, space, bank.features, bank.told)
    right = tuple(one.right(bank.told.slot_P) for one in said)
    known_Q = mix.inputs(len(told.states), len(known), drawn.x_NCf.shape[1], right)
    return Heard(known_Q, said, torch.from_numpy(target_N))


def draw_many(seed: int) -> Drawn:
    """A pair of series of many states, or few long ones."""
    generator = np.random.default_rng([17, seed])
    channels = int(np.exp(generator.uniform(0, np.log(MOST_CHANNELS + 1))))
    states = int(np.exp(generator.uniform(np.log(5), np.log(40))))
    a, b = make(generator, rows=LONG[-1], channels=channels, states=states, pair=True)
    return Drawn(*_tokens(b), *_tokens(a), False)


def train_mix(network: tss.Network, episodes: int, rounds: int, seed: int) -> float:
    """Weights of the experts by the accuracy of decoded episodes, all else fixed (the likelihood would
    smooth far too much: neighbouring tokens see the same rows); then the temperature, by likelihood.
    Returns the accuracy."""
    heard = [h for i in range(episodes) if (h := hear(network, seed * 1_000_000 + 500_000 + i)) is not None]
    generator = np.random.default_rng([19, seed])
    # few: constants, and what more states or prompts change
    free = [(w, None) for w in range(5)] + [(w, q) for w in range(4) for q in (0, 1)]
    with torch.no_grad():
        best = accuracy(network.mix, heard)
        for step in range(rounds):
            before = {name: value.clone() for name, value in network.mix.state_dict().items()}
            for at in generator.choice(len(free), 3, replace=False):
                w, q = free[at]
                move = float(generator.normal()) * 0.3
                if q is None:
                    network.mix.constant[w] += move
                else:
                    network.mix.slope[w, q] += move
            found = accuracy(network.mix, heard)
            if found > best:
                best = found
                print(f"mix: round {step + 1}: accuracy {best:.4f}", flush=True)
            else:
                network.mix.load_state_dict(before)
        grid = [(likelihood(network.mix, heard, t), t) for t in np.geomspace(1, 30, 18)]
        network.mix.constant[5] = float(np.log(min(grid)[1]))
    return best


def accuracy(weights_of: mix.Mix, heard: list[Heard]) -> float:
    """Mean share of the tokens of named states that the chain gets right."""
    found = []
    for one in heard:
        weights = weights_of(one.known_Q)
        states_N = decode(weights.cost(one.said).contiguous(), float(weights.lam), None, None).states_N
        named_N = one.target_N >= 0
        found.append(float((states_N == one.target_N)[named_N].float().mean()))
    return float(np.mean(found))


def likelihood(weights_of: mix.Mix, heard: list[Heard], temperature: float) -> float:
    """Mean negative log of what the chain gives the true states, token by token."""
    found = []
    for one in heard:
        weights = weights_of(one.known_Q)
        p_NK = marginals(weights.cost(one.said).contiguous(), float(weights.lam), temperature, None)
        named_N = one.target_N >= 0
        true_N = p_NK[named_N].gather(1, one.target_N[named_N, None])
        found.append(float(-true_N.clamp(min=1e-6).log().mean()))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--episodes", type=int, default=360, help="for the weights of the experts")
    parser.add_argument("--rounds", type=int, default=120, help="of the search for them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    network = tss.Network(encode.Shape())
    if asked.check:
        check(network)
        return
    curve = train_encoder(network, asked.steps, asked.seed)
    network = rounded(network)
    right = train_mix(network, asked.episodes, asked.rounds, asked.seed)
    card = {
        "made_by": "scripts/train_tss_base.py",
        "data": "memtoken_cli.data.states: generated from seeds; nothing else",
        "seed": asked.seed,
        "steps": asked.steps,
        "loss": round(float(np.mean(curve[-PROBE // BATCH :])), 4),
        "probe": round(float(np.mean(curve[: PROBE // BATCH])), 4),
        "accuracy": round(right, 4),
    }
    tss.save(network, asked.out, {"card": card})
    print(json.dumps({"out": str(asked.out), **card}))


def rounded(network: tss.Network) -> tss.Network:
    """As the asset will hold it: what follows must be fitted to that."""
    state = {name: value.half().float() for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def check(network: tss.Network) -> None:
    """Exit 1 where the first PROBE episodes do not give the asset's loss within 2 %."""
    card = artifact.read_header(ASSET).about["card"]
    found = float(np.mean(train_encoder(network, PROBE // BATCH, card["seed"], of=card["steps"])))
    print(f"loss of the first {PROBE} episodes: {found:.4f}, the asset's {card['probe']:.4f}")
    if abs(found / card["probe"] - 1) > 0.02:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
