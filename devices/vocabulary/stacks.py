"""Decides which training jobs are stacked: trained in one pass over one frozen base.

Each job of a stack has its own adapter. A matrix product may round differently with other rows
beside it, so the last digits of a result depend on the jobs that it is stacked with. Stacks
therefore follow from the list of jobs alone, never from the worker that trains them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from devices.vocabulary.trainer import TrainingJob


def stacks_of(jobs: Sequence[TrainingJob]) -> list[tuple[int, ...]]:
    """Return the stacks of a list of jobs, each as indices into it; each job is in one stack.

    Jobs whose passes have one shape are stacked in the order of the list, at most
    ``TrainingJob.stack`` at a time. If whole stacks are removed from the list, the others stay as
    they are, so some may come from a cache or go to another worker.
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
    """Return a key that is equal for jobs that can be stacked, None for a job that cannot be.

    Jobs with packed activations cannot, since their noise is drawn tensor by tensor, nor can jobs
    with a tail penalty. Jobs may differ in the terms that they hold and train, if their backward
    passes reach equally deep.
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
        plan.micro_batch,
        plan.proximal_mu,
        job.rate_share,
        adapter.merged.digest,
        adapter.scale,
    )
