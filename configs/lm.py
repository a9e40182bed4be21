"""A small language model of text files, byte by byte: by default of the library that comes with Python. Minutes on a CPU.

    python -m mlprod.train --config configs/lm.py --config.etl.source.path="books/*.txt"

Pieces of 16 KB are the documents, so that a part of any text can be held out. A larger one has more layers, width and tokens,
words for bytes (`TokenizerFile`), blocks computed again (`remat`), `precision.compute="bfloat16"`, and a mesh: docs/layouts.md.
"""

import sysconfig

from mlprod.config import (
    ByHash,
    CheckpointConfig,
    Config,
    EtlConfig,
    EvalConfig,
    LoaderConfig,
    NextToken,
    OptimConfig,
    TextSource,
)
from mlprod.models.transformer import TransformerConfig


def get_config() -> Config:
    """Returns the recipe."""
    return Config(
        name="lm",
        workdir="runs/lm",
        dataset="datasets/lm",
        etl=EtlConfig(
            source=TextSource(path=f"{sysconfig.get_path('stdlib')}/*.py", max_bytes=1 << 14),
            columns=(),
            label=NextToken(length=128),
            split=ByHash(eval=0.05, test=0.05),
            group_rows=256,
        ),
        model=TransformerConfig(layers=4, width=128, heads=4, kv_heads=2, head_width=32, hidden=352, remat="none"),
        optim=OptimConfig(peak_lr=4e-3, warmup_steps=30, weight_decay=0.1, b2=0.95),
        loader=LoaderConfig(global_batch=32),
        eval=EvalConfig(batch=64, every=100),
        checkpoint=CheckpointConfig(every_s=60.0),
        steps=400,
    )
