"""From a recipe's `rmt.policy` to the policy itself."""

from __future__ import annotations

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.methods.rmt.associative import Associative
from memtoken_cli.methods.rmt.blocks import Blocks
from memtoken_cli.methods.rmt.config import CACHES, Config
from memtoken_cli.methods.rmt.layered import Layerwise
from memtoken_cli.methods.rmt.network import Network
from memtoken_cli.methods.rmt.policy import Policy
from memtoken_cli.methods.rmt.transformer_xl import TransformerXL


def policy_for(backbone: CausalLM, config: Config, seed: int) -> Policy:
    """The policy, its own parameters drawn from the seed. Raises UsageError where model and policy do not
    fit."""
    network = Network(backbone)
    if config.policy == "prmt":
        return Layerwise(network, config, seed)
    if config.policy == "armt":
        return Associative(network, config, seed)
    if config.policy == "xl":
        return TransformerXL(network, config, seed)
    if config.policy in CACHES:
        from memtoken_cli.methods.rmt.cached import Cached

        return Cached(network, config)
    return Blocks(network, config, seed)
