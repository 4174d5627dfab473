"""Workers, here and in Ray, share tasks; those of a worker that dies are run again or given up."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.tasks.task import totals
from devices.vocabulary.plan import Adapter
from devices.vocabulary.trainer import (
    ChunkScore,
    Evaluation,
    NullTrainer,
    SalienceMetric,
    TrainingError,
    TrainingJob,
    TrainingResult,
)
from simulator.config.experiment import ConfigError, load_experiment
from simulator.workers.kept_tokens import KeptTokens
from simulator.workers.pool import BACKGROUND, TRAININGS, Backend, Pool
from simulator.workers.processes import CAN_COPY, HUGE_PAGES, LocalProcesses
from simulator.workers.shared_trainer import SharedTrainer
from simulator.workers.trainers import Trainers, loading
from simulator.world.build import build_world
from tests.devices.test_stacks import job as a_job
from tests.simulator.test_bitwise import REAL, write
from tests.torture import long
from traces.arrays import FloatArray

MAKE = partial(NullTrainer, 3)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray", reason="needs the extra [ray]")
    found.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield found
    found.shutdown()


def site(name: str, make: Any, request: pytest.FixtureRequest) -> Backend:
    if name == "processes":
        return LocalProcesses(make)
    request.getfixturevalue("ray")
    from simulator.workers.ray_actors import RayCluster

    return RayCluster(make, 2, gpus_each=0)


@pytest.fixture(params=["processes", "ray"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    found = Pool(site(request.param, MAKE, request), 2)
    yield found
    found.close()


def square(_: Any, number: int) -> int:
    return number * number


def die_once(_: Any, marker: Path) -> int:
    """Kill the worker, unless another has died of it before."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die(_: Any, deaths: Path) -> None:
    with deaths.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: Any) -> None:
    raise TrainingError("no good")


def wait_for(_: Any, file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def meet(_: Any, mine: Path, other: Path) -> None:
    mine.touch()
    wait_for(_, other)


def note(_: Any, log: Path, word: str) -> None:
    with log.open("a") as file:
        file.write(f"{word} ")


def no_model() -> Any:
    with loading():
        raise ValueError("there is none\nof that name")


def test_a_worker_that_dies_is_replaced_and_its_jobs_run_again(pool: Pool, tmp_path: Path) -> None:
    deadly = pool.submit(partial(die_once, marker=tmp_path / "died"))
    others = [pool.submit(partial(square, number=k)) for k in range(20)]
    assert [other.result(60) for other in others] == [k * k for k in range(20)]
    survivor = deadly.result(60)
    assert (tmp_path / "died").exists()
    assert survivor != os.getpid()


def test_work_that_no_worker_outlives_is_given_up(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"but {TRAININGS.max_deaths} did at the same work"):
        pool.submit(partial(die, deaths=tmp_path / "deaths")).result(120)
    assert (tmp_path / "deaths").read_text() == "x" * TRAININGS.max_deaths
    assert pool.submit(partial(square, number=3)).result(60) == 9


def test_a_mistake_in_a_task_is_its_own(pool: Pool) -> None:
    with pytest.raises(TrainingError, match=r"^no good$"):
        pool.submit(fail).result(60)
    assert pool.submit(partial(square, number=3)).result(60) == 9


@pytest.mark.parametrize("name", ["processes", "ray"])
def test_why_a_worker_cannot_make_its_trainer_is_said(
    name: str, request: pytest.FixtureRequest
) -> None:
    there = site(name, no_model, request)
    with pytest.raises(TrainingError, match=r"^the model cannot be loaded: there is none$"):
        Pool(there, 1)


def has_imported(_: Any, module: str) -> bool:
    return module in sys.modules


@long
@pytest.mark.skipif(not CAN_COPY, reason="each worker imports for itself here")
def test_a_worker_has_imported_what_it_needs_before_it_needs_it() -> None:
    code = (  # in a new process, whose first pool decides what workers import
        "from functools import partial; from simulator.workers.pool import Pool; "
        "from simulator.workers.processes import LocalProcesses; "
        "from tests.simulator.test_pool import MAKE, has_imported; "
        "pool = Pool(LocalProcesses(MAKE), 1); "
        "print(pool.submit(partial(has_imported, module='devices.training.trainer')).result(60)); "
        "pool.close()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert ended.stdout.split() == ["True"], ended.stderr


def environment_of(_: Any, name: str) -> str | None:
    return os.environ.get(name)


@long
@pytest.mark.skipif(not CAN_COPY, reason="each worker is started by itself here")
@pytest.mark.parametrize("own", [None, "glibc.malloc.hugetlb=0"])
def test_workers_lie_in_huge_pages_unless_the_user_says_how(own: str | None) -> None:
    (name,) = HUGE_PAGES
    code = (
        "from functools import partial; from simulator.workers.pool import Pool; "
        "from simulator.workers.processes import LocalProcesses; import os; "
        "from tests.simulator.test_pool import MAKE, environment_of; "
        "pool = Pool(LocalProcesses(MAKE), 1); "
        f"asked = pool.submit(partial(environment_of, name={name!r})); "
        f"print(asked.result(60), os.environ.get({name!r})); pool.close()"
    )
    plain = {key: value for key, value in os.environ.items() if key != name}
    environment = plain | ({name: own} if own else {}) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert ended.stdout.split() == [own or HUGE_PAGES[name], str(own)], ended.stderr


def kill_template_once(_: Any, marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)


@long
@pytest.mark.skipif(not CAN_COPY, reason="each worker imports for itself here")
def test_a_run_outlives_the_process_that_workers_are_copies_of(tmp_path: Path) -> None:
    pool = Pool(LocalProcesses(MAKE), 2)
    pool.submit(partial(kill_template_once, marker=tmp_path / "killed")).result(60)
    squares = [pool.submit(partial(square, number=k)) for k in range(6)]
    assert [one.result(60) for one in squares] == [k * k for k in range(6)]
    pool.close()


@pytest.mark.skipif(not CAN_COPY, reason="each worker imports for itself here")
def test_a_template_that_dies_as_it_starts_is_said(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os; os._exit(1)", "utf-8")
    code = (
        "from simulator.workers import processes as own; "
        "own.LocalProcesses(None, templates=['dies'])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (
        "TrainingError: the process that training processes are copies of must not end"
        in (ended.stderr.splitlines()[-1])
    )


def not_installed() -> Any:
    raise ModuleNotFoundError("none here")


def shares(scores: Iterable[ChunkScore]) -> Evaluation:
    num_examples, num_right, _ = totals(scores)
    return Evaluation({"share": num_right / num_examples})


class Counting:
    """This trainer tells of each job how many were trained with it, and each chunk's number."""

    num_chunks = 3

    def train(self, jobs: Sequence[TrainingJob]) -> list[TrainingResult]:
        return [TrainingResult(job.broadcast.adapter, float(len(jobs)), job.seed) for job in jobs]

    def score(self, adapter: Adapter, chunks: Iterable[int]) -> list[ChunkScore]:
        return [ChunkScore((2, k, float(k)), ((2, k),)) for k in chunks]

    def evaluate(self, adapter: Adapter) -> Evaluation:
        return shares(self.score(adapter, range(self.num_chunks)))

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.array([1.0, 2.0])

    def block_fisher(self, adapter: Adapter) -> FloatArray:
        return np.array([2.0, 1.0])


def test_workers_share_whole_passes_and_all_chunks_whoever_is_first() -> None:
    shared = SharedTrainer(Pool(LocalProcesses(Counting), 2), shares)
    jobs = [replace(a_job(stack=2), seed=k) for k in range(5)]
    assert [result[1:3] for result in shared.train(jobs)] == [
        (2, 0), (2, 1), (2, 2), (2, 3), (1, 4),
    ]  # fmt: skip
    alone = Counting()
    adapter = jobs[0].broadcast.adapter
    assert shared.evaluate(adapter) == alone.evaluate(adapter) == ({"share": 0.5}, ())
    assert shared.begin(alone.evaluate, adapter).result(60) == alone.evaluate(adapter)
    assert shared.block_salience("wanda").tolist() == [1.0, 2.0]
    shared.close()


def test_what_the_server_waits_for_goes_before_what_it_does_not(tmp_path: Path) -> None:
    pool = Pool(LocalProcesses(MAKE), 1)
    log, go = tmp_path / "log", tmp_path / "go"
    pool.submit(partial(wait_for, file=go))
    tasks = [("late", BACKGROUND), ("first", 0), ("second", 0), ("later", BACKGROUND)]
    futures = [pool.submit(partial(note, log=log, word=word), k) for word, k in tasks]
    go.touch()
    for future in futures:
        future.result(60)
    assert log.read_text().split() == ["first", "second", "late", "later"]
    pool.close()


def test_what_is_not_done_when_the_pool_is_closed_is_cancelled_at_once(tmp_path: Path) -> None:
    pool = Pool(LocalProcesses(MAKE), 1)
    busy = pool.submit(partial(wait_for, file=tmp_path / "go"))
    while not busy.running():
        time.sleep(0.01)
    waiting = pool.submit(partial(square, number=3))
    pool.close()
    for future in (waiting, busy):
        with pytest.raises(CancelledError):
            future.result(0)
    with pytest.raises(CancelledError, match="the pool is closed"):
        pool.submit(partial(square, number=3))


def test_a_cluster_without_room_is_refused_at_once(ray: Any) -> None:
    from simulator.workers.ray_actors import RayCluster

    with pytest.raises(ConfigError, match="at most 2, the room in the Ray cluster, got 3"):
        RayCluster(MAKE, 3, gpus_each=0)


@contextmanager
def held(ray: Any, num_cpus: int) -> Iterator[None]:
    """Take so many cores of the cluster, as another run does."""
    holder = ray.remote(num_cpus=num_cpus)(Counting).remote()
    ray.get(holder.evaluate.remote(None))
    yield
    ray.kill(holder)


def test_a_cluster_that_others_hold_is_refused_rather_than_waited_for(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator.workers import ray_actors as worker_ray

    monkeypatch.setattr(worker_ray, "ANSWER_WITHIN_S", 0.5)
    with held(ray, 2), pytest.raises(TrainingError, match="but others hold all 2 places"):
        worker_ray.RayCluster(MAKE, 1, gpus_each=0)


@long
def test_work_begins_with_the_first_worker_and_another_joins_when_there_is_room(
    ray: Any, tmp_path: Path
) -> None:
    from simulator.workers.ray_actors import RayCluster

    with held(ray, 1):
        pool = Pool(RayCluster(MAKE, 2, gpus_each=0), 2)
        assert pool.submit(partial(square, number=3)).result(60) == 9
    first, second = tmp_path / "first", tmp_path / "second"
    pair = [(first, second), (second, first)]  # each task waits until the other has begun
    futures = [pool.submit(partial(meet, mine=mine, other=other)) for mine, other in pair]
    for future in futures:
        future.result(60)
    pool.close()


def test_who_waits_for_room_is_not_waited_for_at_the_end(ray: Any) -> None:
    from simulator.workers.ray_actors import RayCluster

    pool = Pool(RayCluster(MAKE, 2, gpus_each=0), 3)  # one worker more than there is room for
    assert pool.submit(partial(square, number=3)).result(60) == 9
    pool.close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])  # nobody listens at 1
def test_a_cluster_that_does_not_answer_is_named_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from simulator.workers import ray_actors as worker_ray

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(TrainingError, match=rf"refused \(RAY_ADDRESS={address}\)$"):
        worker_ray._connect(1)


def test_why_a_worker_cannot_even_begin_is_said(ray: Any) -> None:
    from simulator.workers.ray_actors import RayCluster

    with pytest.raises(TrainingError, match=r"must be installed on each machine.*: none here$"):
        Pool(RayCluster(not_installed, 1, gpus_each=0), 1)


def test_work_of_a_lost_machine_goes_to_who_is_left_and_a_machine_that_joins_works(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="needs the extra [ray]")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulator.ray_machines", tmp_path],
        cwd=Path(__file__).parents[2],
        env=environment | token,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    head, second, third = found["machines"]
    assert set(found["first"]) == {head, second}
    assert found["lost"] == [head, head]
    assert set(found["joined"]) == {head, third}


def test_an_executor_that_is_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="must be one of processes, ray, got 'slurm'"):
        Trainers(2, executor="slurm")


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'fedclock\[ray\]'"):
        Trainers(2, executor="ray")


def test_a_worker_with_other_files_is_refused(tmp_path: Path) -> None:
    from simulator.workers.trainers import _torch_trainer

    (config,) = load_experiment(write(tmp_path, REAL))
    world = build_world(config, "x.yaml")
    make: Any = _torch_trainer(config, world, KeptTokens(None, ""))
    other = make.args[-1] | {"torch": "0.1", "the model's files": "0"}
    with pytest.raises(TrainingError, match=r"but torch, the model's files differ on \S+$"):
        make.func(*make.args[:-1], other)
