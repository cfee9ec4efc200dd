"""The naive decode, an oracle for `decode.py`: one row, no cache, everything read anew at each step, and the
grammar as one plain loop. Slow on purpose.

Shape suffixes: T tokens, P procedures, k control tokens, E model width, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.engine.decode import end_ids
from memtoken_cli.methods.tokmem.bank import Bank
from memtoken_cli.methods.tokmem.features import leaning, level
from memtoken_cli.methods.tokmem.keys import INSIST, NONE, Options
from memtoken_cli.methods.tokmem.kinds import FirstSite
from memtoken_cli.methods.tokmem.parts import Parts
from memtoken_cli.methods.tokmem.prompt import Prompt


@dataclass
class _Seen:
    """What the model makes of the sequence so far: words_V logits; states [T,E] by layer, final one last."""

    words_V: Tensor
    states: tuple[Tensor, ...]

    @property
    def h_E(self) -> Tensor:
        return self.states[-1][-1]


class Plain:
    """Greedy, grammar only."""

    def __init__(self, backbone: CausalLM, bank: Bank, options: Options) -> None:
        self.backbone, self.bank, self.options = backbone, bank, options
        self.V = backbone.dims.vocab
        self.ends = end_ids(backbone)

    @torch.no_grad()
    def decode(self, prompt: Prompt) -> list[int]:
        """Virtual ids that came after the prompt, EOS left out."""
        bank, options = self.bank, self.options
        self.prompt, self.ids = prompt, []
        chain = list(options.forced)
        limit = len(chain) or options.max_procedures or bank.meta.max_procedures
        used, self.spans, self.several = 0, [range(0)], None
        self.part: tuple[int, Prompt] | None = None
        name = chain.pop(0) if options.forced else self._route("first")
        while True:
            if name is not None:
                used += 1
                at = bank.names.index(name) * bank.meta.tokens
                self.ids += [self.V + 1 + at + j for j in range(bank.meta.tokens)]
                self._focus()
            start = len(self.ids)
            ended = self._segment(name)
            self.spans.append(range(start, len(self.ids)))
            if chain:
                if bank.meta.segment_end == "eoc":
                    self.ids.append(self.V)
                name = chain.pop(0)
                continue
            goes_on = (
                ended in ("eoc", "json")
                or ended.startswith("!")
                or (ended == "eos" and self._routes_at_eos())
            )
            if options.forced or name is None or used >= limit or not goes_on or self.several is False:
                return self.ids
            if ended == "eoc":
                self.ids.append(self.V)
            name = ended[1:] if ended.startswith("!") else self._route("boundary")
            if name is None:
                return self.ids

    def _segment(self, name: str | None) -> str:
        """Says a segment and returns why it ended; "!NAME": that procedure came in between."""
        said: list[int] = []
        ending = self.bank.meta.segment_end if name is not None else "none"
        alone = self.options.forced or self._used() >= self._most()
        while True:
            seen = self._see()
            logits = seen.words_V
            if ending == "eoc":
                assert self.bank.eoc_E is not None
                logits = torch.cat([logits, (seen.h_E @ self.bank.eoc_E)[None]])
            joint = name is not None and ending == "none" and said and not alone
            if joint and self.bank.meta.address != "lda":
                memory_P = self._memory(seen)
                if float(memory_P.max()) > float(logits.max()):
                    return "!" + self.bank.names[int(memory_P.argmax())]
            token = int(logits.argmax())
            if token in self.ends:
                return "eos"
            if token == self.V:
                return "eoc"
            said.append(token)
            self.ids.append(token)
            if ending == "json" and self._is_json(said):
                return "json"
            if len(said) == self.options.max_new_tokens:
                return "limit"

    def _route(self, site: str) -> str | None:
        if self.options.procedures == NONE or not self.options.allowed(self.bank.names):
            return None
        seen = self._see()
        plain = self.options.procedures != INSIST or site == "boundary"
        if self.bank.meta.address == "lda":
            return self._scored(site, seen, plain)
        memory_P = self._memory(seen)
        all_ = torch.cat([seen.words_V, memory_P]).softmax(0)
        p_P = all_[self.V :]
        other = all_[: self.V].sum() if site == "first" else all_[self.ends].max()
        if plain and (other > p_P.max() or (site == "boundary" and other == p_P.max())):
            return None
        return self.bank.names[int(p_P.argmax())]

    def _scored(self, site: str, seen: _Seen, plain: bool) -> str | None:
        parts = self.bank.parts()
        if site not in self.bank.sites and parts is None:
            return None
        allowed = self.options.allowed(self.bank.names)
        if parts is not None:
            token_UL = self._tokens(parts, self._read(self.prompt, []))
        if parts is not None and site == "boundary":
            labels, score_S = parts.labels, parts.following(token_UL, self._done())
        else:
            T = len(self.prompt.ids)
            features = self._features(seen, -1, *self.prompt.user)
            if site == "boundary":
                spoken = [span for span in self.spans if len(span)]  # an empty segment has no mean
                final_TE = seen.states[-1].float()
                last = final_TE[T + spoken[-1].start : T + spoken[-1].stop] if spoken else final_TE[-1:]
                features.append(last.mean(0))
            scorer = self.bank.scorer(site)  # type: ignore[arg-type]
            labels, score_S = scorer.labels, scorer.scores([x[None] for x in features])[0]
            if isinstance(scorer, FirstSite):
                (self.several,) = scorer.asks_for_several([x[None] for x in features]).tolist()
            elif parts is not None and self.bank.meta.max_procedures > 1:
                self.several = parts.several(token_UL)
                if self.several:
                    first_P = parts.first(token_UL)
                    P = len(first_P)
                    apart_S = score_S[P:] - score_S[:P].max()
                    score_S = torch.cat([first_P, first_P.max() + apart_S])
        special = plain if site == "first" else not (self.several and self._used() == 1)
        mask_S = torch.tensor([n in allowed or (n.startswith("\0") and special) for n in labels])
        label = labels[int(score_S.masked_fill(~mask_S, float("-inf")).argmax())]
        return None if label.startswith("\0") else label

    def _done(self) -> list[int]:
        k, first = self.bank.meta.tokens, self.V + 1
        rows = [(i - first) // k for i in self.ids if i >= first]
        return rows[::k]

    def _memory(self, seen: _Seen) -> Tensor:
        rows_PE = self.bank.control_PkE[:, 0] if self.bank.address_PE is None else self.bank.address_PE
        out_P = rows_PE @ seen.h_E
        if self.bank.address_bias_P is not None:
            out_P = out_P + self.bank.address_bias_P
        allowed = self.options.allowed(self.bank.names)
        shut_P = torch.tensor([name not in allowed for name in self.bank.names])
        return out_P.masked_fill(shut_P, float("-inf"))

    def _see(self) -> _Seen:
        """What is there so far; inside a segment that has a part of its own, that part and the segment."""
        if self.part is None:
            return self._read(self.prompt, self.ids)
        begin, prompt = self.part
        return self._read(prompt, self.ids[begin:])

    def _read(self, prompt: Prompt, ids: list[int]) -> _Seen:
        embed = self.backbone.model.get_input_embeddings()
        rows = self.bank.control_PkE.flatten(0, 1)
        x = [embed(torch.tensor([i]))[0] for i in prompt.ids]
        for i in ids:
            if i < self.V:
                x.append(embed(torch.tensor([i]))[0])
            elif i == self.V:
                assert self.bank.eoc_E is not None
                x.append(self.bank.eoc_E)
            else:
                x.append(rows[i - self.V - 1])
        x_1TE = torch.stack(x)[None]
        out = self.backbone.model(inputs_embeds=x_1TE, use_cache=False, output_hidden_states=True)
        final = self.backbone.model.get_decoder()(inputs_embeds=x_1TE, use_cache=False).last_hidden_state[0]
        return _Seen(out.logits[0, -1].float(), (*(x[0] for x in out.hidden_states[:-1]), final))

    def _focus(self) -> None:
        """The procedure whose tokens were just put in stands behind its own part of the query alone."""
        parts = self.bank.parts()
        if parts is None or any(window is not None for window in self.backbone.dims.windows):
            return
        seen = self._read(self.prompt, [])
        token_UL = self._tokens(parts, seen)
        if self.several is None and self.options.forced:
            scorer = self.bank.scorer()
            if isinstance(scorer, FirstSite):
                found = self._features(seen, -1, *self.prompt.user)
                (self.several,) = scorer.asks_for_several([x[None] for x in found]).tolist()
            else:
                self.several = self.bank.meta.max_procedures > 1 and parts.several(token_UL)
        if self.several:
            span = parts.span(token_UL, self._done())
            before, after = (self.prompt.ids[: self.prompt.user[0]], self.prompt.ids[self.prompt.user[1] :])
            own = self.prompt.ids[self.prompt.user[0] :][span.start : span.stop]
            shown = Prompt((*before, *own, *after), (len(before), len(before) + len(own)))
            self.part = (len(self.ids) - self.bank.meta.tokens, shown)

    def _tokens(self, parts: Parts, seen: _Seen) -> Tensor:
        start, end = self.prompt.user
        levels = [level(f, len(seen.states) - 1) for f in self.bank.meta.features if f.pool == "user"]
        return parts.tokens(self.bank.projected([seen.states[at][start:end].float() for at in levels]))

    def _features(self, seen: _Seen, last: int, start: int, end: int) -> list[Tensor]:
        features = []
        for feature in self.bank.meta.features:
            x_TE = seen.states[level(feature, len(seen.states) - 1)].float()
            weight_U1 = leaning(feature, end - start)
            mean_E = (x_TE[start:end] * weight_U1).sum(0) / weight_U1.sum()
            features.append(x_TE[last] if feature.pool == "last" else mean_E)
        return features

    def _routes_at_eos(self) -> bool:
        """Closed-form addresses are no logits: there EOS ends a segment, and scores tell what follows."""
        closed = self.bank.meta.address == "lda"
        known = "boundary" in self.bank.sites or self.bank.parts() is not None
        return closed and known and self.bank.meta.segment_end != "eoc"

    def _used(self) -> int:
        k = self.bank.meta.tokens
        return sum(i > self.V for i in self.ids) // k

    def _most(self) -> int:
        return self.options.max_procedures or self.bank.meta.max_procedures

    def _is_json(self, said: list[int]) -> bool:
        text = str(self.backbone.tokenizer.decode(said, skip_special_tokens=True)).lstrip()
        if not text.startswith(("{", "[")):
            return False
        try:
            json.JSONDecoder().raw_decode(text)
        except ValueError:
            return False
        return True
