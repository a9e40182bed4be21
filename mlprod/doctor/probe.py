"""What jax finds on this machine, as JSON: in a process of its own, for one whose devices are held may wait forever.

Each device adds two numbers: a driver that does not fit lists its devices and fails at the first computation.
"""

import json

import jax

if __name__ == "__main__":
    for device in jax.devices():
        assert float(jax.device_put(1.0, device) + 1.0) == 2.0
    print(json.dumps([(device.platform, device.device_kind) for device in jax.devices()]))
