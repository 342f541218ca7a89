"""The training program on the axes for long rows and for experts."""

import dataclasses

import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.train import train

LM = dataclasses.replace(tiny.LM, num_experts=4, num_decoder_layers=1, embed_dim=16, mlp_dim=32)


def arguments(model_dir, **mesh):
    return tiny.arguments(
        model_dir,
        model=LM,
        task=tiny.task(tl.CausalLM()),
        lengths={"targets": 32},
        total_steps=3,
        mesh=MeshConfig(**mesh),
    )


def test_a_run_with_experts_and_stretches_is_the_run_without(tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    train(**arguments(one, data=8))
    train(**arguments(many, data=1, expert=2, context=2, tensor=2))
    names = ("loss", "grad_norm", "load_balance_loss", "router_z_loss", "cross_entropy", "z_loss")
    found = {name: tiny.logged(one, name) for name in names}
    for name in names:
        assert len(found[name]) == 3
        other = tiny.logged(many, name)
        np.testing.assert_allclose(list(other.values()), list(found[name].values()), rtol=1e-4)
    for step, loss in found["loss"].items():
        aux = 0.01 * found["load_balance_loss"][step] + 0.001 * found["router_z_loss"][step]
        parts = found["cross_entropy"][step] + found["z_loss"][step] + aux
        np.testing.assert_allclose(loss, parts, rtol=1e-5)


def test_lengths_that_the_mesh_cannot_cut(tmp_path):
    changes = {"lengths": {"targets": 30}}
    with pytest.raises(UserError, match=r"of 30 tokens can't be cut in 4 .* such as 32"):
        train(**arguments(tmp_path, data=2, context=4) | changes)


def test_experts_that_the_mesh_cannot_share_out(tmp_path):
    with pytest.raises(UserError, match=r"its axis of 4 can't be split in 8 \(mesh axis expert\)"):
        train(**arguments(tmp_path, data=1, expert=8))
