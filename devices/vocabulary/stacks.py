"""Groups jobs that are trained in one pass: one frozen base, and each job's own adapter over it.

This follows from the list of jobs alone, never from who trains it. A matrix product may round
differently with other rows beside it, so a result depends, in its last digits, on what it is
stacked with.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from devices.vocabulary.trainer import TrainingJob


def stacks_of(jobs: Sequence[TrainingJob]) -> list[tuple[int, ...]]:
    """Return the indices of each pass's jobs, at most ``TrainingJob.stack``; each job is in one.

    Jobs go together in the order of the list, where their passes have one shape. Without some of
    the stacks, the rest of the list falls into the same stacks: a part of it can come out of a
    cache, or go to another worker.
    """
    alike: dict[Hashable, list[int]] = {}
    for k, job in enumerate(jobs):
        alike.setdefault(_shape_of_pass(job) or k, []).append(k)
    return sorted(
        tuple(members[first : first + jobs[members[0]].stack])
        for members in alike.values()
        for first in range(0, len(members), jobs[members[0]].stack)
    )


def _shape_of_pass(job: TrainingJob) -> Hashable:
    """Return a key that is equal for two jobs that can be stacked; None for one that must be alone.

    Alone are packed activations, whose noise is drawn tensor by tensor, and a penalty on tails.
    Which terms a job holds and trains is its own affair, as long as its backward pass goes as deep.
    """
    plan, adapter = job.plan, job.broadcast.adapter
    if job.stack == 1 or plan.tail_penalty or any(0 < b < 32 for b in plan.activation_bits):
        return None
    return (
        job.stack,
        plan.weight_formats,
        plan.activation_bits,
        plan.depth,
        plan.terms.use,
        plan.local_steps,
        plan.batch_size,
        plan.proximal_mu,
        adapter.merged.digest,
        adapter.scale,
    )
