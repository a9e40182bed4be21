"""mlprod: rows from a warehouse to a trained, sharded JAX model, exactly resumable.

Price: importing the package imports nothing; each verb imports what it needs.
"""

__version__ = "0.1.0"
