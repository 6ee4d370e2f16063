"""What may become of machines, pods, jobs, volumes and quota."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.conditions import POD_STUCK, WAITING
from piton.api.reasons import Reason
from piton.api.spec import Stage
from piton.api.status import AttemptState, Verdict
from support.fake_trainer import START_WORDS, Trainer
from support.fake_world import GRACE_SECONDS
from support.worlds.one_run import PASSES_TO_STOP, TIMING
from support.worlds.user_rules import UserRules


class ClusterTrouble(UserRules):
    """Machines go, containers do not start, programs fail, quota is taken back."""

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self._tick()

    @rule(seconds=st.sampled_from([0, 0, 5, 60]))
    def operators_clock_is_set(self, seconds: int) -> None:
        self.world.slow_seconds = seconds
        self.slowest = max(self.slowest, seconds)

    @rule(how=st.sampled_from(["preempt", "kill_node", "cut_node", "vanish", "reclaim"]))
    def machine_goes(self, how: str) -> None:
        trainer = self.world.running()
        if trainer:
            self.machines_lost += 1
            getattr(self.world, how)(trainer)

    @rule()
    def machine_goes_with_its_pod_while_nobody_looks(self) -> None:
        """Once the status knows where the replica was, that is enough: whoever looks next sees a preemption."""
        record, trainer = self.world.status.current, self.world.running()
        if record is None or trainer is None or record.number != trainer.number:
            return
        known = [placed.uid for placed in record.replicas] == [trainer.pod]
        wanted = record.state is AttemptState.RUNNING and not trainer.deleting and not trainer.disruption
        self.machines_lost += 1
        before = self.world.status.preemptions
        self.world.vanish(trainer)
        self._tick()
        self._pass()
        current = self.world.status.current
        if (
            self.understood is None
            and known
            and wanted
            and self._undisturbed()
            and current is not None
            and current.number == record.number
        ):
            assert (self.world.status.preemptions, current.verdict) == (before + 1, Verdict.PREEMPTED)

    @rule(how=st.sampled_from(["evicted", "suspended", "deleted"]))
    def a_machine_does_not_end_its_pod(self, how: str) -> None:
        """People are told, and nothing else runs meanwhile. Then the machine is replaced."""
        trainer = self.world.running()
        if trainer is None or self.understood is not None or self.world.typo or self.world.slow_seconds:
            return
        if how == "deleted" and not self.deletion:
            return
        record = self.world.status.current
        if self.old_news and (record is None or record.number != trainer.number or record.state is AttemptState.ENDED):
            return  # the operator has believed that it was over, and the next attempt comes once it is told to go
        trainer.never_ends = True
        if how == "evicted":
            self.world.preempt(trainer)
        elif how == "suspended":
            self.suspend_or_resume()
        else:
            self.delete()
        created = len(self.world.created)
        for _ in range(PASSES_TO_STOP + GRACE_SECONDS + int(TIMING.stuck_seconds)):
            self._pass()
            self.world.tick()
        assert len(self.world.created) == created or (trainer.deleting and not trainer.shown)
        is_stuck = self.world.is_late(trainer, TIMING.stuck_seconds)  # a suspension may have been taken back, say
        if is_stuck and trainer.shown and not trainer.node_gone:  # it may have been about to go
            assert not self.world.may_be_forced(trainer)
            assert self.world.status.is_true(POD_STUCK)
            record = self.world.status.current
            holds_up = self.world.deleting or (record is not None and record.state is AttemptState.STOPPING)
            if holds_up and not self.world.status.is_true(WAITING):
                self._pass()  # it may have begun to stop in the last one
            assert self.world.status.is_true(WAITING) or not holds_up
        self.machines_lost += 1
        self.world.kill_node(trainer)
        trainer.never_ends = False

    @rule(ends=st.sampled_from(["back", "gone", "dead"]), seconds=st.integers(1, 30), passes=st.booleans())
    def machine_turns_silent(self, ends: str, seconds: int, passes: bool) -> None:
        """As with its zone: silence alone restarts nothing. Then it answers, or counts as gone."""
        trainer = self.world.running()
        if trainer is None:
            return
        created = len(self.world.created)
        self.world.fall_silent(trainer)
        for _ in range(seconds):
            if passes:
                self._pass()
            self._tick()
        assert self.old_news or len(self.world.created) == created
        self._silence_ends(trainer, ends)

    def _silence_ends(self, trainer: Trainer, ends: str) -> None:
        self.world.answer(trainer)
        if ends == "back" or not trainer.shown:
            return
        self.machines_lost += 1
        if ends == "gone" or not trainer.alive:
            self.world.cut_node(trainer)
        else:
            self.world.kill_node(trainer)

    @rule(seconds=st.integers(1, 20) | st.just(300))
    def the_next_gang_is_half(self, seconds: int) -> None:
        self.half_gangs += 1
        self.world.half_a_gang_seconds = seconds

    @rule(what=st.sampled_from(sorted(START_WORDS)), seconds=st.integers(1, 40) | st.just(300))
    def the_next_container_does_not_start(self, what: str, seconds: int) -> None:
        self.world.next_start, self.world.next_start_seconds = what, seconds

    @rule(what=st.sampled_from(sorted(START_WORDS)))
    def what_has_trained_does_not_start_on_another_machine(self, what: str) -> None:
        """After an attempt has had time to report something durable: whatever is said then, it is no failure of its."""
        self._goes_on(12)
        record = self.world.status.current
        is_judged = record is not None and (record.state, record.verdict) == (
            AttemptState.STOPPING,
            Verdict.USER_FAILURE,
        )
        before = self.world.status.failures + is_judged  # its end is counted when it is closed
        starts = len(self.world.failed_starts)
        self.the_next_container_does_not_start(what, 9)
        self.machine_goes("kill_node")
        self._goes_on(14)
        if all(is_proven for _, is_proven in self.world.failed_starts[starts:]):
            assert self.world.status.failures == before

    @rule()
    def a_node_runs_short_of_memory(self) -> None:
        """Once that is nobody's fault, and in the next attempt the program's."""
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.machines_lost += 1
            self.crashes += trainer.number - 1 in self.world.evicted
            self.world.evict_for_memory(trainer)

    @rule()
    def device_fails(self) -> None:
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.devices_lost += 1
            self.world.break_device(trainer)

    @rule()
    def a_machine_is_cordoned(self) -> None:
        """What the program does by itself afterwards is its own doing. Who deletes its pod drains the machine."""
        trainer = self.world.running()
        if trainer:
            self.cordons += not trainer.is_cordoned
            trainer.is_cordoned = True

    @rule(crashes=st.booleans())
    def a_cordon_alone_takes_nothing_away(self, crashes: bool) -> None:
        """A program that trains on such a machine trains on, and one that crashes there has crashed."""
        trainer, before = self._trains_undisturbed(), self.world.status
        if trainer is None or self.world.store.complete is not None:
            return
        trainer.is_cordoned = True
        if crashes:
            self.crashes += 1
            self.world.crash(trainer)
        self._goes_on(6)
        assert self.world.status.preemptions == before.preemptions
        assert self.world.status.failures == before.failures + crashes
        assert crashes or self.world.spec.limits.budget or trainer.exit_code == 0 or not trainer.deleting
        self.cordons += 1

    def _trains_undisturbed(self) -> Trainer | None:
        """The trainer of a run that goes on to its end if nothing is done to it any more."""
        world, record = self.world, self.world.status.current
        trainer = world.running() if self.understood is None else None  # else nothing is decided meanwhile
        if trainer is None or record is None or world.typo or world.spec.suspend or world.deleting:
            return None
        if world.next_start or world.half_a_gang_seconds or world.failing_reads or world.is_volume_empty:
            return None
        if trainer.deleting or trainer.dies_at or trainer.goes_at or trainer.never_ends or trainer.disruption:
            return None
        if world.reservation is not None and not world.reservation.usable:
            return None
        begun = trainer.stage is Stage.TRAIN and trainer.start is None and trainer.waits_for_peer_until is None
        known = record.number == trainer.number and record.state in (AttemptState.STARTING, AttemptState.RUNNING)
        return trainer if begun and known and not self._others(trainer) else None

    def _others(self, trainer: Trainer) -> list[Trainer]:
        """Those that an operator has still to see to."""
        others = (other for other in self.world.jobs.values() if other is not trainer)
        return [other for other in others if other.alive or other.has_sidecar or other.deleting]

    @rule(what=st.sampled_from(["bug", "memory", "disk"]))
    def program_fails(self, what: str) -> None:
        trainer = self.world.running()
        if trainer and trainer.dies_at is None and trainer.start is None:
            self.crashes += 1
            self.world.crash(trainer, out_of_memory=what == "memory", out_of_disk=what == "disk")

    @precondition(lambda self: self.world.job_exists)
    @rule()
    def job_vanishes(self) -> None:
        self.jobs_lost += 1
        self.world._stop(max(self.world.job_exists))

    @rule(attempts=st.integers(3, 7))
    def no_attempt_gets_anywhere(self, attempts: int) -> None:
        """As while a kubelet refuses pods: each job is over as soon as it is there."""
        for _ in range(attempts):
            for _ in range(PASSES_TO_STOP + int(TIMING.backoff_seconds_max)):
                self._pass()
                self._tick()
                if self.world.job_exists:
                    self.job_vanishes()
                    break

    @rule(kind=st.sampled_from(["jobs", "workloads"]), seconds=st.integers(1, 12), pod_goes=st.booleans())
    def a_kind_is_not_served(self, kind: str, seconds: int, pod_goes: bool) -> None:
        """Nothing begins that would need it, and no attempt ends because nobody can tell what there is of it."""
        self._goes_on(6)
        created, before = len(self.world.created), self.world.status.current
        self.world.unserved = kind
        trainer = self.world.running()
        if trainer and pod_goes and kind == "jobs":
            self.machines_lost += 1
            self.world.vanish(trainer)
        for _ in range(seconds):
            self._pass()
            self._tick()
        self.world.unserved = ""
        current = self.world.status.current
        if kind == "jobs" or self.world.reservation is not None:
            assert len(self.world.created) == created
        if self.understood is None and before and current and current.number == before.number and not before.reason:
            assert current.reason not in (Reason.JOB_VANISHED, Reason.QUOTA_TAKEN)

    @rule(attempts=st.integers(1, 2))
    def reads_fail(self, attempts: int) -> None:
        self.world.failing_reads += attempts

    @rule()
    def the_next_machine_mounts_another_volume(self) -> None:
        """After an attempt has had time to report something durable, and before the next has had time to replace it."""
        self._goes_on(12)
        self.world.is_volume_empty = True
        self.machine_goes("kill_node")
        self._goes_on(12)
        self.world.is_volume_empty = False

    @precondition(lambda self: self.world.reservation)
    @rule()
    def kueue_admits(self) -> None:
        self.world.admit()

    @precondition(lambda self: self.world.reservation and self.understood is None)
    @rule()
    def kueue_evicts(self) -> None:
        """The run gives its quota back in the time of an orderly stop, whatever it did, and that is no failure."""
        before = self.world.status.failures
        self.world.evict()
        for _ in range(10):
            self._pass()
            self.world.tick()
        assert self.world.reservation is not None
        assert not self.world.reservation.held or self.failures, "or what was denied before is not tried again yet"
        assert not self.world.billed()
        assert self.world.status.failures <= max(before, self.crashes + self._wrong_starts())

    @precondition(lambda self: self.world.reservation)
    @rule()
    def kueue_lets_it_run(self) -> None:
        """Asked, admitted, started: otherwise few worlds get that far."""
        self._goes_on(6)
