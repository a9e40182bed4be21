import jax

from mlprod.train import train


def test_runs(make_config):
    train(make_config(steps=10), jax.devices()[:1])
    train(make_config("b", steps=10), jax.devices())
