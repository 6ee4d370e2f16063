"""The services around the steps of an attempt: ranks, fence, signals, watchdog, telemetry, checkpoints.

The session opens them when it is entered, and closes them at its end. However the attempt ends, whoever listens is told
so: the operator by a report and by the termination message, the user by a line.
"""

import atexit
import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from piton.contract import output, startup_phases
from piton.contract.termination import ScriptEnd, Termination
from piton_trainer import script_end
from piton_trainer.checkpoint.format import layout
from piton_trainer.checkpoint.format.retry import Retry
from piton_trainer.checkpoint.load import readahead
from piton_trainer.checkpoint.volume_start import check_shared, claim_directory
from piton_trainer.clock import Clock
from piton_trainer.config import Config
from piton_trainer.errors import BadConfig, Ended, Fenced, Stopped
from piton_trainer.hangs.heartbeats import Heartbeats, RankPhase, record_collectives
from piton_trainer.hangs.watchdog import Watchdog, watched
from piton_trainer.runtime.device_faults import require_gpus
from piton_trainer.runtime.process_group import Ranks
from piton_trainer.telemetry.callbacks import Callback
from piton_trainer.telemetry.telemetry import Telemetry, build_telemetry
from piton_trainer.termination import TerminationLog, end_as_lost_device, outcome_of, print_status
from piton_trainer.training.run_checkpoint import RunCheckpointer, make_run_checkpointer
from piton_trainer.training.run_restore import fetch_from_mirror
from piton_trainer.training.signals import StopFlag
from piton_trainer.training.startup import Startup
from piton_trainer.training.steps import Steps


class AttemptServices:
    """The services of one attempt on this rank. Before `open` there are none, and the rank is alone."""

    def __init__(
        self,
        config: Config,
        *,
        overlap_saves: bool,
        callbacks: Sequence[Callback],
        clock: Clock,
        disk: layout.Disk | None,
    ) -> None:
        self.ranks = Ranks()
        self.signals = StopFlag()
        self.attempt = config.attempt or 0
        self.telemetry = Telemetry()
        self.beats: Heartbeats = Heartbeats()
        self.steps: Steps | None = None
        self.store: RunCheckpointer | None = None
        self._config = config
        self._overlap_saves = overlap_saves
        self._callbacks = callbacks
        self._clock = clock
        self._saves_in_background = config.background_saves and disk is None
        self._disk = disk or layout.Disk()
        self._retry = Retry(clock, is_stopping=self._is_stopping)
        self._log = TerminationLog(config.termination_log, self.ranks)
        self._watchdog: Watchdog | None = None

    def open(self) -> None:
        """Join the other ranks, claim the directory, and build what an attempt needs. All ranks call it together.

        Raises:
            BadConfig: it cannot begin as it is configured.
        """
        output.keep_going()
        self.signals.install()
        config, clock, startup = self._config, self._clock, Startup(self._clock)
        require_gpus(config.gpus)
        readahead.begin(config.checkpoint_dir)
        if config.hang_timeout is not None and torch.cuda.is_available():
            record_collectives(config.checkpoint_dir)
        try:
            self.ranks = ranks = Ranks.join(config.collective_seconds, config.join_seconds)
        except ValueError as error:
            raise BadConfig(str(error)) from error
        startup.lap(startup_phases.PROCESS_GROUP)
        self._log = TerminationLog(config.termination_log, ranks)
        script_end.forget()
        self._log.clear()
        claim = partial(claim_directory, disk=self._disk, clock=clock, is_stopping=self._is_stopping)
        numbers = {"attempt": config.attempt, "durable_step": config.durable_step}
        fence = ranks.on_main(partial(claim, config.checkpoint_dir, **numbers))
        self.attempt = fence.attempt
        check_shared(config.checkpoint_dir, ranks=ranks, durable_step=config.durable_step, disk=self._disk, clock=clock)
        self.beats, self._watchdog = watched(config, ranks, attempt=fence.attempt)
        if ranks.is_main:
            self.telemetry = build_telemetry(
                config, world_size=ranks.world_size, fence=fence, clock=clock, callbacks=self._callbacks
            )
        self.store = store = make_run_checkpointer(
            config,
            ranks=ranks,
            fence=fence,
            disk=self._disk,
            clock=clock,
            retry=self._retry,
            fetch=None if config.assignment.mirror is None else partial(fetch_from_mirror, self.telemetry, startup),
            overlaps=self._overlap_saves,
            background=self._saves_in_background,
        )
        store.expect()
        self.steps = Steps(
            config,
            ranks=ranks,
            store=store,
            telemetry=self.telemetry,
            signals=self.signals,
            clock=clock,
            startup=startup,
            beats=self.beats,
        )
        startup.lap(startup_phases.CLAIM)

    def close(self, error: BaseException | None) -> None:
        """Say how it ended, wherever somebody listens, and give everything back.

        Raises:
            DeviceLost: the error says so; it has its own exit code.
        """
        self.beats.enter(RankPhase.ENDING)
        outcome, detail = outcome_of(error)
        steps, in_order = self.steps, error is None or isinstance(error, Ended)
        complete = None if steps is None or error is not None else steps.complete
        readahead.stop()
        if self.store is not None:
            self.store.release()
        # The end of a training with a name is not the end of the run.
        if (complete is not None and self._config.session is None) or error is not None:
            end = Termination(outcome=outcome, detail=detail) if steps is None else steps.termination(outcome, detail)
            holder = error.holder if isinstance(error, Fenced) else None
            limit = error.limit if isinstance(error, Stopped) else None
            end = replace(end, fence=holder, limit=limit, unreported=self.telemetry.report_failure)
            if complete is not None:
                scripts, launched = script_end.processes(), script_end.is_launched()
                end = replace(end, script=ScriptEnd.RUNNING, scripts_left=scripts, launched=launched)
                script_end.watch(self._log)
            self._log.leave(end)
            if self.store is not None:
                self.store.leave_end(outcome)
        if isinstance(error, Ended) and self.ranks.local_rank == 0:
            print_status(detail)
        if complete is not None and self.ranks.is_main:
            print_status(f"finished at step {complete.step}: {complete.reason}")
        # The last report comes after it, and says how far the mirror came.
        self.telemetry.end_mirror(outcome)
        # After a crash there may be no device left to read metrics from.
        has_news = steps is not None and steps.has_begun and in_order and self.ranks.is_main
        self.telemetry.close(steps.progress(finished=complete is not None) if steps and has_news else None)
        self.signals.restore()
        if self._watchdog is not None:
            self._watchdog.leave()
        self.beats.close()
        if in_order:
            self.ranks.leave()
        if isinstance(error, Stopped):
            # The interpreter ends by looking through all of torch for garbage; a node that goes has no time for that.
            atexit.register(gc.freeze)
        end_as_lost_device(error)

    def _is_stopping(self) -> bool:
        return self.signals.received is not None
