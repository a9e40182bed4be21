"""Windows: decoded once whoever asks, the same by either placing, memory used again only when nothing sees it."""

import dataclasses
import threading
from concurrent.futures import CancelledError

import jax
import numpy as np
import pytest

from mlprod.data.memory import Memory, Scratch
from mlprod.data.reader import GroupReader
from mlprod.data.window import Gather, LocalRows, Scatter, Window
from mlprod.errors import TrainingError
from mlprod.order import OrderSpec, plan_epoch
from mlprod.store import open_store
from tests.synthetic import write_dataset

SPEC = OrderSpec(seed=3, global_batch=32, num_lanes=8, window_rows=128, group_rows=16, pad=False)
SIZES = [16] * 40


@pytest.fixture
def groups(tmp_path):
    """A reader of 40 groups of 16 rows: a group is a lane's part of a window."""
    return GroupReader(open_store(str(tmp_path)), write_dataset(tmp_path, SIZES, 16), "train")


def window_of(groups, number=1, ranges=((0, 32),), spec=SPEC):
    return Window(plan_epoch(spec, SIZES, 0), number, LocalRows(spec, ranges), groups, Memory(), Scratch())


@pytest.mark.parametrize("batch, ranges", [(32, [(0, 32)]), (32, [(4, 12), (20, 32)]), (8, [(0, 8)]), (8, [(1, 3), (7, 8)])])
def test_gathering_equals_scattering(batch, ranges, groups, monkeypatch):
    """The usual window's faster placing, in few blocks or many, gives the same bytes as the one for any window."""
    spec = dataclasses.replace(SPEC, global_batch=batch)
    gathered = window_of(groups, ranges=ranges, spec=spec)
    assert isinstance(gathered._placing, Gather)
    monkeypatch.setattr(Gather, "suits", staticmethod(lambda *_: False))
    scattered = window_of(groups, ranges=ranges, spec=spec)
    assert isinstance(scattered._placing, Scatter)
    for j in gathered.batches:
        a, b = gathered.batch(j), scattered.batch(j)
        assert {name: values.tobytes() for name, values in a.items()} == {name: values.tobytes() for name, values in b.items()}


def test_parts_of_lanes_and_last_windows_are_scattered(groups):
    assert isinstance(window_of(groups, ranges=[(0, 6)])._placing, Scatter)
    assert isinstance(window_of(groups, number=plan_epoch(SPEC, SIZES, 0).num_windows - 1)._placing, Scatter)


def ask_all(window, num_threads=6):
    """What each of several threads gets that ask for a batch at the same moment: bytes, or an error."""
    barrier, results = threading.Barrier(num_threads), []

    def ask():
        barrier.wait()
        try:
            results.append(window.batch(window.batches[0])["row_id"].tobytes())
        except (TrainingError, CancelledError) as error:
            results.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results


def test_a_window_is_decoded_once_however_many_threads_ask(groups, monkeypatch):
    reads, real = [], GroupReader.read
    monkeypatch.setattr(GroupReader, "read", lambda self, group: reads.append(group) or real(self, group))
    results = ask_all(window_of(groups))
    assert len(results) == 6
    assert len(set(results)) == 1
    assert len(reads) == len(set(reads)) == 8


def test_an_error_of_one_thread_reaches_all(groups, monkeypatch):
    """Also those that did not read the torn group."""

    def torn(self, group):
        raise TrainingError(f"torn {group}")

    monkeypatch.setattr(GroupReader, "read", torn)
    results = ask_all(window_of(groups))
    assert [type(result) for result in results] == [TrainingError] * 6


def test_a_cancelled_window_lets_everyone_go(groups):
    window = window_of(groups)
    window.cancel(CancelledError())
    assert [type(result) for result in ask_all(window)] == [CancelledError] * 6


def test_memory_comes_back_when_no_view_is_left():
    memory = Memory()
    first = memory.lease(1000)
    view = first[10:20].view(np.uint16).reshape(5, 1)
    address = first.ctypes.data
    del first
    assert memory.lease(1000).ctypes.data != address, "a view of a view still sees it"
    del view
    assert address in {memory.lease(500).ctypes.data, memory.lease(500).ctypes.data}
    assert memory.lease(10_000).nbytes == 10_000, "one too small is not used"


def test_memory_on_a_device_is_not_written_over():
    """jax uses an aligned array on CPU without a copy: as long as it does, the block is not given out again."""
    memory = Memory()
    leased = memory.lease(1 << 16)
    leased[:] = 7
    placed = jax.device_put(leased[: 1 << 15].view(np.float32), jax.devices()[0])
    wanted = np.array(placed)
    del leased
    for _ in range(4):
        memory.lease(1 << 16)[:] = 9
    assert np.array(placed).tobytes() == wanted.tobytes()


def test_the_share_of_a_window_is_paced(groups):
    """As far as asked for, never more than a burst allows, never what is decoded already."""
    window = window_of(groups)  # 8 groups
    assert window.share_of(0.25, 1.0) == 2
    assert window.share_of(1.0, 0.25) == 2
    window.decode(3)
    assert window.share_of(0.25, 1.0) <= 0
    assert window.share_of(0.5, 1.0) == 1
