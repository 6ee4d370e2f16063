"""A status that does not know what there is: a write that was lost with the operator, or an etcd that was restored."""

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piton.api.conditions import SUCCEEDED
from piton.api.status import RunStatus
from piton.cost import spending
from support.worlds.cluster_rules import ClusterTrouble


class LostStatuses(ClusterTrouble):
    """Jobs exist of which the status says nothing. What they have saved is kept, and they are known again at once."""

    @precondition(lambda self: self.restores and not self.old_news and self.understood is None)
    @precondition(lambda self: self.world.written and self.world.exists)
    @rule(ago=st.integers(1, 40), all_of_it=st.booleans())
    def an_older_status_is_restored(self, ago: int, all_of_it: bool) -> None:
        """All that follows from what it does not know counts anew."""
        world = self.world
        world.restore(RunStatus() if all_of_it else world.written[max(0, len(world.written) - 1 - ago)])
        self.statuses_lost += 1
        self.jobs_lost += len(world.created)
        self.crashes += len(world.evicted)
        world.evicted.clear()
        world.failed_starts = [(how, False) for how, _ in world.failed_starts]
        world.stages_created.clear()
        self.highest = world.status.attempt
        self.succeeded = world.status.is_true(SUCCEEDED)
        self.spent = spending.dollars(world.status.cost.spent) if world.status.cost else self.spent * 0

    @precondition(lambda self: self.deletion and self.understood is None)
    @rule(how=st.sampled_from(["died", "restored"]), all_of_it=st.booleans(), seconds=st.integers(0, 12))
    def a_run_is_deleted_while_a_job_is_forgotten(self, how: str, all_of_it: bool, seconds: int) -> None:
        """An attempt that trains and saves is not in the status: the operator died, or it is an older one."""
        if how == "died":
            self.machine_goes("kill_node")
            for _ in range(25):
                self.world.calls_until_crash, self.world.crash_after_the_call = 1, True
                self._pass()
                self._tick()
                if self._is_forgotten():
                    break
        elif self.restores and not self.old_news and self.world.written and self.world.exists:
            self.an_older_status_is_restored(ago=40, all_of_it=all_of_it)
        for _ in range(seconds):
            self._tick()
        if self._is_forgotten():
            self.delete()
            for _ in range(10):
                self._pass()
                self._tick()

    def _is_forgotten(self) -> bool:
        return max(self.world.job_exists, default=0) > self.world.status.attempt
