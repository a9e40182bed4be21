import time, jax, cProfile, pstats
from mlprod.train import train
from tests.conftest import *
def test_x(make_config):
    for i in range(3):
        t=time.time(); p=cProfile.Profile(); p.enable()
        train(make_config(f"r{i}", steps=4, eval={"every":0}), jax.devices()[:1])
        p.disable(); print("RUN", time.time()-t)
    pstats.Stats(p).sort_stats("cumtime").print_stats(45)
