"""Which parameters decay."""

from torch import nn

from src.modules.training.groups import matrices_and_vectors


def test_matrices_decay_and_gains_and_biases_do_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 2))
    matrices, vectors = matrices_and_vectors(model)
    assert [id(one) for one in matrices["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert {id(one) for one in vectors["params"]} == {id(one) for one in model.parameters() if one.ndim == 1}
    assert "weight_decay" not in matrices and vectors["weight_decay"] == 0
