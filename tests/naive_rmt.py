"""`rmt`, `static`, `prmt`, `armt` by their equations: one row, whole segments, a model's public forward with
explicit positions and mask. c: the configuration. p: the parameters by their names in an artifact."""

import torch


def places(c, n, before):
    text = 0 if c.positions == "zero" else int(c.positions.partition(":")[2] or before)
    each = [0 if c.positions == "zero" else i for i in range(c.slots)]
    write = text + (n if c.positions == "contiguous" else c.segment)
    return torch.tensor([each[:before] + [text + j for j in range(n)] + [write + i for i in each]])


def phi(x, c):
    y = torch.cat([x.relu(), (-x).relu()], -1)
    out = torch.cat([y * torch.roll(y, j, -1) for j in (1, 2, 3)], -1)
    return out / out.norm(dim=-1, keepdim=True) if c.normalise else out


def write(layer, w, state, c, p):
    if c.policy == "armt":
        (a, z), k = state[layer], phi(w @ p[f"armt.{layer}.k"].T, c)
        b = torch.sigmoid(w @ p[f"armt.{layer}.b"].T + p[f"armt.{layer}.bias"])
        change = w @ p[f"armt.{layer}.v"].T - (k @ a) / (k @ z + 1e-5)[:, None]
        g = (1 - (k @ z) / (k.square().sum(-1) + 1e-5)).clamp(0, 1).detach()[:, None]
        return a + (b * k).T @ change, z + (g * k * (b if c.gate_z else 1)).sum(0)
    scale = w.square().mean(-1, keepdim=True) + 1e-6 if c.state_norm != "none" else torch.ones(())
    return w / scale.sqrt() * (p["memory.gain_LMD"][layer] if "memory.gain_LMD" in p else 1)


def read(model, c, p, segments, state):
    """(logits [T,V], the last state) of one row; a state: of every layer (rmt: one) what is kept of it."""
    layers = next(x for x in model.modules() if isinstance(x, torch.nn.ModuleList))
    m, before, made, logits, hooks = c.slots, c.slots * (c.policy != "armt"), [], [], []

    def enter(i, h):
        if c.policy != "armt":
            return h if c.policy != "prmt" else torch.cat([state[i], h[m:-m], state[i]])
        q = phi(h @ p[f"armt.{i}.q"].T, c)
        return h + (q @ state[i][0]) / (q @ state[i][1] + 1e-5)[:, None]

    for i, layer in enumerate(layers):
        hooks += [layer.register_forward_pre_hook(lambda _, a, i=i: (enter(i, a[0][0])[None], *a[1:]))]
        hooks += [layer.register_forward_hook(lambda _, a, out: made.append(out[0, -m:]))]
    for ids in segments:
        text = model.get_input_embeddings()(torch.tensor(ids))
        x = torch.cat([state[0], text, state[0]] if before else [text, p["memory.init_MD"]])
        block = torch.tensor([-1] * before + list(range(len(ids))) + [-2] * m)
        sees = torch.ones(len(x), len(x)).tril().bool() | (block[:, None] == block) & (c.mask == "blocks")
        mask = torch.zeros(len(x), len(x), dtype=x.dtype).masked_fill(~sees, torch.finfo(x.dtype).min)
        said = {"position_ids": places(c, len(ids), before), "attention_mask": mask[None, None]}
        hidden = model.get_decoder()(inputs_embeds=x[None], **said).last_hidden_state[0]
        logits += [model.get_output_embeddings()(hidden[before : before + len(ids)])]
        if c.policy == "rmt":
            state = [(made[-1] if c.state_norm == "none" else hidden[-m:]) * p.get("memory.gain_D", 1)]
        elif c.policy != "static":
            state = [write(i, w, state, c, p) for i, w in enumerate(made[-len(layers) :])]
    for hook in hooks:
        hook.remove()
    return torch.cat(logits), state
