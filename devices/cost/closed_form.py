"""Computes the demand of a plan in closed form, and the time that it takes on a device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from devices.cost.blocks import BatchShape, block_terms
from devices.cost.flops import backward_flops, forward_flops, recomputed_flops
from devices.cost.memory import step_memory
from devices.cost.model import Cost, MemoryBreakdown, StepTime
from devices.cost.optimizers import ADAMW, OptimizerCost
from devices.cost.traffic import Traffic, step_traffic
from devices.fleet.profile import ComputeBits, DeviceProfile, StepRates
from devices.models.spec import ModelSpec
from devices.vocabulary.number_formats import FP32_BYTES
from devices.vocabulary.plan import TrainingPlan
from devices.wire.wire import download_bytes, upload_bytes

MAX_REMEMBERED = 1 << 16
"""Most workloads whose demands are remembered, so that a long simulation fits in memory."""


class Demand(NamedTuple):
    """The demand of a plan is what one training step of it asks of any device.

    FLOPs and traffic are those of all micro-batches of the step together.
    """

    forward_flops: int
    backward_flops: int  # with the recomputation of blocks
    traffic: Traffic
    memory: MemoryBreakdown
    download_bytes: int
    upload_bytes: int
    num_micro_batches: int = 1


class DemandOf(Protocol):
    """A demand function returns the demand of a plan without absent blocks."""

    def __call__(
        self,
        model: ModelSpec,
        plan: TrainingPlan,
        batch: BatchShape,
        optimizer: OptimizerCost = ADAMW,
    ) -> Demand: ...


def closed_form_demand(
    model: ModelSpec, plan: TrainingPlan, batch: BatchShape, optimizer: OptimizerCost = ADAMW
) -> Demand:
    """Return the demand of a plan, from the model's sizes alone."""
    blocks = block_terms(model, plan.terms)
    recomputed = recomputed_flops(model, blocks, plan.activation_bits, batch)
    return Demand(
        forward_flops=forward_flops(model, blocks, batch),
        backward_flops=backward_flops(model, blocks, batch) + recomputed,
        traffic=step_traffic(model, plan, blocks, batch, optimizer=optimizer),
        memory=step_memory(model, plan, batch, optimizer),
        download_bytes=download_bytes(model, plan),
        upload_bytes=upload_bytes(model, plan.terms),
    )


@dataclass(frozen=True)
class ClosedFormCost:
    """This cost model computes costs from the model's sizes; it measures nothing.

    Every batch counts as padded to ``sequence_length``, the longest that the experiment allows,
    with at least one shorter text in it: a simulated device pads to a fixed shape.
    ``compute_bits`` is the width of the products and of what they leave in memory; a plan's weight
    formats and activation bits decide memory and conversions, not the arithmetic rate. A
    model without closed forms brings a ``demand_of`` of its own (``devices/cost/traced.py``).
    """

    model: ModelSpec
    sequence_length: int
    compute_bits: ComputeBits = 32
    demand_of: DemandOf = closed_form_demand
    optimizer: OptimizerCost = ADAMW
    _demands: dict[bytes, Demand] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _counted: dict[tuple[object, ...], Demand] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def cost(self, plan: TrainingPlan, profile: DeviceProfile) -> Cost:
        """Return the cost of a plan on a device.

        Raises ValueError where the profile has no rate for ``compute_bits``.
        """
        # Costs depend on how many blocks are absent, not on which, so such plans share one demand.
        plan = plan.compact()
        demand = self._demands.get(plan.workload)
        if demand is None:
            if len(self._demands) >= MAX_REMEMBERED:
                self._demands.clear()
            demand = self._demands[plan.workload] = self._by_counts(plan)
        step = _in_formats(step_time(demand, profile, self.compute_bits), plan, profile)
        train_s = plan.local_steps * sum(step)
        return Cost(
            download_bytes=demand.download_bytes,
            upload_bytes=demand.upload_bytes,
            flops=float(plan.local_steps * (demand.forward_flops + demand.backward_flops)),
            memory=demand.memory,
            step=step,
            train_s=train_s,
            compute_j=train_s * profile.power_w["compute"],
        )

    def _by_counts(self, plan: TrainingPlan) -> Demand:
        """Return the demand of a plan without absent blocks.

        Which of a module's terms are held, trained and sent at which bits matters to the upload
        alone; the rest follows from how many they are, and is worked out once for each number.
        """
        terms, missed = plan.terms, plan.missed_ranks
        key = (
            terms.held.sum(axis=2).tobytes(),
            terms.trained.sum(axis=2).tobytes(),
            terms.use,
            plan.weight_formats,
            plan.activation_bits,
            (plan.batch_size, plan.micro_batch, plan.tail_penalty, plan.proximal_mu),
            b"" if missed is None else missed.tobytes(),
        )
        known = self._counted.get(key)
        if known is None:
            if len(self._counted) >= MAX_REMEMBERED:
                self._counted.clear()
            known = self._counted[key] = self.demand(plan)
        return known._replace(upload_bytes=upload_bytes(self.model, terms))

    def demand(self, plan: TrainingPlan) -> Demand:
        """Return the demand of a plan, on a model of the blocks that are not absent."""
        plan = plan.compact()
        model = self.model
        if plan.num_blocks != model.num_blocks:
            model = replace(model, num_blocks=plan.num_blocks)
        size = plan.micro_batch or plan.batch_size
        batch = BatchShape(size, self.sequence_length, True, self.compute_bits)
        demand = self.demand_of(model, plan, batch, self.optimizer)
        times = plan.num_micro_batches
        return demand if times == 1 else _accumulated(demand, times, model, plan)


def _in_formats(step: StepTime, plan: TrainingPlan, profile: DeviceProfile) -> StepTime:
    """Return a step whose passes take as long as the formats of the plan's blocks have them take.

    The time of a format differs by device, since some have no fast kernels for it. All blocks run
    forward, and the trained ones and those above them backward.
    """
    if not profile.format_time:
        return step
    times = [profile.format_time.get(name, 1.0) for name in plan.weight_formats]
    crossed = times[len(times) - plan.depth :] or [1.0]
    return step._replace(
        forward_s=step.forward_s * sum(times) / len(times),
        backward_s=step.backward_s * sum(crossed) / len(crossed),
    )


def _accumulated(demand: Demand, times: int, model: ModelSpec, plan: TrainingPlan) -> Demand:
    """Return the demand of a step on so many micro-batches of which ``demand`` is that of one.

    Each is a pass of its own, and the optimizer steps once. Adding a gradient to those before it
    reads both and writes the sum.
    """
    traffic = demand.traffic
    added = 3 * FP32_BYTES * model.trained_parameters(plan.terms) * (times - 1)
    return demand._replace(
        forward_flops=times * demand.forward_flops,
        backward_flops=times * demand.backward_flops,
        traffic=Traffic(
            forward=times * traffic.forward,
            backward=times * traffic.backward + added,
            cast=times * traffic.cast,
            unpacked=times * traffic.unpacked,
            packed=times * traffic.packed,
            optimizer=traffic.optimizer,
        ),
        num_micro_batches=times,
    )


def step_time(demand: Demand, profile: DeviceProfile, compute_bits: ComputeBits) -> StepTime:
    """Return the seconds of a step: by measured rates for a calibrated profile, else by a roofline.

    Raises ValueError where the profile has no rate for ``compute_bits``.
    """
    if compute_bits not in profile.flops_per_s:
        known = ", ".join(map(str, profile.flops_per_s))
        raise ValueError(
            f"profile {profile.name} must have a rate for {compute_bits} bits, it has only {known}"
        )
    if profile.measured:
        return serial_time(demand, profile.measured[compute_bits])
    return _roofline(demand, profile, compute_bits)


def serial_time(demand: Demand, rates: StepRates) -> StepTime:
    """Return the seconds of a step as the sum of its parts, each at its own rate.

    In each pass the FLOPs and the bytes moved count one after the other.
    """
    traffic = demand.traffic
    forward, backward = (
        flops / rates.flops_per_s + moved / rates.memory_bytes_per_s
        for flops, moved in (
            (demand.forward_flops, traffic.forward),
            (demand.backward_flops, traffic.backward),
        )
    )
    converted = (
        traffic.cast / rates.cast_bytes_per_s
        + traffic.unpacked / rates.unpack_bytes_per_s
        + traffic.packed / rates.pack_bytes_per_s
    )
    optimizer = traffic.optimizer / rates.memory_bytes_per_s
    overhead_s = demand.num_micro_batches * rates.overhead_s
    return StepTime(forward, backward, converted, optimizer, overhead_s)


def _roofline(demand: Demand, profile: DeviceProfile, compute_bits: ComputeBits) -> StepTime:
    """Return the seconds of a step, each pass as long as the longer of arithmetic and traffic.

    Williams et al., "Roofline" (2009), applied phase by phase: our reconstruction.
    """
    flops_per_s, bytes_per_s = profile.flops_per_s[compute_bits], profile.memory_bytes_per_s
    traffic = demand.traffic
    return StepTime(
        forward_s=max(demand.forward_flops / flops_per_s, traffic.forward / bytes_per_s),
        backward_s=max(demand.backward_flops / flops_per_s, traffic.backward / bytes_per_s),
        quantize_s=traffic.quantize / bytes_per_s,
        optimizer_s=traffic.optimizer / bytes_per_s,
        overhead_s=demand.num_micro_batches * profile.overhead_s,
    )
