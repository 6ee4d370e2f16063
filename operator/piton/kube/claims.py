"""The claim of a run's checkpoints, as the rules see it."""

from piton.api.spec import Meta, Spec
from piton.kube.ownership import made_for, made_for_earlier, owned
from piton.kube.resources import Body
from piton.observed import VolumeSeen


def see(claim: Body | None, meta: Meta, spec: Spec | None) -> VolumeSeen:
    """Return what is known of the claim. One that the user brings is never ours to create, so it is in nobody's way."""
    if spec is None or claim is None:
        return VolumeSeen(exists=False)
    if spec.checkpoint.volume.claim_name:
        return VolumeSeen(exists=True)
    made = made_for(claim, meta)
    return VolumeSeen(
        exists=True,
        name=claim["metadata"]["name"],
        ours=made,
        made=made,
        reclaim=spec.checkpoint.volume.reclaim,
        owned=owned(claim, meta),
        of_earlier_run=made_for_earlier(claim, meta),
    )
