"""Event files for TensorBoard, in `tensorboard/` of the run's folder, by tensorboardX (the only door to it).

Promise: one file, written anew from the log at each start, so that the curves have neither gap nor double point; where a run
goes back after bad numbers, the event that makes TensorBoard forget what is behind. No hostname in its name.
Price: about 0.1 ms a record beside the loop, after a resume for the whole past; 2 s of import.
"""

import time
from typing import Any

from mlprod.errors import ConfigError
from mlprod.trackers.run import TrackedRun
from mlprod.tracking import Record

FLUSH_S = 2.0


class TensorBoard:
    """The event file of one attempt."""

    after = 0

    def __init__(self, run: TrackedRun) -> None:
        """Begins the file, and removes those of earlier attempts, of which it has everything.

        Raises:
            ConfigError: tensorboardX is not installed.
        """
        try:  # the door is lazy, as W&B's is
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"config.tracking.tensorboard=True needs tensorboardX ({error}): pip install 'mlprod[tensorboard]'"
            ) from error

        self._events = event_pb2
        folder = run.workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        for older in folder.glob("events.out.tfevents.*"):
            older.unlink()
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{run.attempt}"))
        self._reached, self._flushed = 0, time.monotonic()
        self._write(time.time(), 0, file_version="brain.Event:2")

    def log(self, record: Record) -> None:
        """Writes the values as `kind/name`."""
        if not record.values:
            return
        if record.step < self._reached or (record.kind == "train" and record.step == self._reached):
            self._write(record.time, record.step, session_log={"status": "START"})
        self._reached = record.step
        values = [{"tag": f"{record.kind}/{name}", "simple_value": value} for name, (value, _) in record.values.items()]
        self._write(record.time, record.step, summary={"value": values})
        if time.monotonic() - self._flushed > FLUSH_S:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self, code: int = 0) -> None:
        """Writes what is left."""
        self._file.flush()
        self._file.close()

    def _write(self, when: float, step: int, **what: Any) -> None:
        self._file.write(self._events.Event(wall_time=when, step=step, **what).SerializeToString())
