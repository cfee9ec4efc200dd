"""Low-rank training of a backbone under recurrent memory."""

import pytest
import tiny_rmt
import torch
from tiny import tiny_gpt2, tiny_llama

from memtoken_cli.data.streams import IGNORE, Sequences
from memtoken_cli.engine.stream import Bptt
from memtoken_cli.io import artifact
from memtoken_cli.methods.rmt import model_file
from memtoken_cli.methods.rmt.config import Config
from memtoken_cli.methods.rmt.learn import scores
from memtoken_cli.methods.rmt.policies import policy_for
from memtoken_cli.methods.rmt.run import drops, trainable

CONFIG = Config(slots=2, segment=4, trained="lora", rank=2, loss="all")


def rows() -> Sequences:
    ids_BT = torch.randint(4, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    return Sequences(ids_BT, torch.tensor([12, 12]), torch.full_like(ids_BT, IGNORE), torch.tensor([0, 0]))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_only_low_rank_parts_and_the_memory_move(make) -> None:
    pytest.importorskip("peft")
    backbone = make()
    before = {name: x.clone() for name, x in backbone.model.state_dict().items()}
    policy = policy_for(backbone, CONFIG, 0)
    parameters = trainable(backbone, policy, CONFIG)
    assert any(name.startswith("lora.") for name in parameters) and "memory.init_MD" in parameters
    assert not any(name.startswith("weights.") for name in parameters)
    assert drops(backbone.model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):  # the second factor starts at zero and hides the first
        optimiser.zero_grad()
        scores(policy, rows(), CONFIG, Bptt(), torch.device("cpu")).total.backward()
        optimiser.step()
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters.values())
    after = backbone.model.state_dict()
    for name, x in before.items():
        kept = after.get(name)
        wrapped = name.rpartition(".")
        kept = after[f"{wrapped[0]}.base_layer.{wrapped[2]}"] if kept is None else kept
        assert torch.equal(kept, x), name


def test_without_low_rank_parts_a_tiny_model_drops_nothing() -> None:
    assert not drops(tiny_llama().model)


def test_a_file_gives_back_what_was_trained(tmp_path) -> None:
    pytest.importorskip("peft")
    path = tiny_rmt.artifact(tmp_path, "rmt.trained=lora", "rmt.rank=2")
    found = model_file.open_model(path, "cpu")
    again = model_file.open_model(path, "cpu")
    ids_BW = torch.randint(4, 60, (1, 16))
    count_B = torch.tensor([16])
    wanted_K = torch.arange(16)
    with torch.no_grad():
        one, _ = found.policy.segment(ids_BW, count_B, found.policy.start(1), wanted_K)
        two, _ = again.policy.segment(ids_BW, count_B, again.policy.start(1), wanted_K)
    assert torch.equal(one, two)
    assert any(name.startswith("lora.") for name in artifact.read(path)[1])
