"""Baselines: comparison with numbers that were recorded before, in ``__trainability__/test_5_baselines.json``.

They were recorded with ``pytest examples/test_5_baselines.py --trainability-baseline=new``. For the broken example,
REPAIRED=1 was set in the environment: it measures the model without the fault.
"""

from __future__ import annotations

import os

import pytest
import torch

transformers = pytest.importorskip("transformers")

LAYERS = 8
tokens = torch.randint(10, 512, (4, 32))


def gpt2():
    """Return GPT-2 in its default configuration, but narrower and with fewer layers."""
    config = transformers.GPT2Config(
        vocab_size=512, n_positions=64, n_embd=128, n_layer=LAYERS, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def gpt2_without_scaling():
    """Return GPT-2 without the factor 1/sqrt(2 × layers) of the output projections, as in huggingface/transformers#47458."""
    model = gpt2()
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            parameter.data.mul_((2 * LAYERS) ** 0.5)
    return model


def test_gpt2_is_as_recorded(trainability):
    trainability(gpt2, {"input_ids": tokens, "labels": tokens}, seeds=8).check_baseline()


@pytest.mark.broken_on_purpose
def test_gpt2_lost_its_scaling(trainability):
    """A bound would not detect the fault, as the gradient grows by only two nats. The comparison with the baseline does."""
    build = gpt2 if os.environ.get("REPAIRED") else gpt2_without_scaling
    trainability(build, {"input_ids": tokens, "labels": tokens}, seeds=8, name="gpt2").check_baseline()
