"""What the processes of `test_peers.py` do. Imported once by the fork server."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlprod.config import LimitsConfig
from mlprod.errors import ConfigError, PeerLost, TrainingError
from mlprod.processes.peers import Peers
from mlprod.processes.rank import Rank


def met(index: int, count: int, port: int, limits: LimitsConfig) -> Peers:
    """Returns the others, who have come."""
    peers = Peers(limits, Rank(index=index, count=count, coordinator=f"127.0.0.1:{port}"))
    peers.join({})
    return peers


def meet(peers: Peers) -> str:
    """All come to one barrier; process 1 of three does not come to the next."""
    peers.meet("first", 20.0)
    try:
        if peers.rank.index != 1:
            peers.meet("second", 1.0)
        else:
            time.sleep(3.0)
    except PeerLost as error:
        return str(error)
    return ""


def compare(peers: Peers) -> str:
    """Asked for the same, and then for what process 2 has otherwise."""
    peers.check_same("dataset_id", "abc")
    try:
        peers.check_same("colour", "red" if peers.rank.index == 2 else "blue")
    except ConfigError as error:
        return str(error)
    return "all the same"


def fail(peers: Peers) -> str:
    """Process 1 fails while the others wait for it at a barrier."""
    with peers:
        if peers.rank.index == 1:
            raise TrainingError("it went wrong")
        peers.meet("never", 60.0)
    return "came back"


ACTS = {"meet": meet, "compare": compare, "fail": fail}


def run(act: str, index: int, count: int, port: int, output: str, limits: Sequence[float]) -> None:
    """Does one of the above as process `index` and writes down what came of it; ends with its error's exit code."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    peers = met(index, count, port, LimitsConfig(join_s=limits[0], heartbeat_s=limits[1]))
    does: Callable[[Peers], str] = ACTS[act]
    try:
        said = does(peers)
    except TrainingError as error:
        os._exit(error.exit_code)
    Path(f"{output}.{index}").write_text(said)
    if act != "meet":
        peers.__exit__(None, None, None)
    os._exit(0)
