"""The evaluator that has its work done by a Ray cluster, which its users already run.

1. `OnRay` connects to the cluster and sends what nodes need once: recipe, plug-ins, corpus.
2. Each measurement of a target and each training is a Ray task that takes the resources which the
   recipe names, and travels as a parcel. Ray's resources are the leases between machines: a phone
   at a cable is one unit of a resource of the node that it is plugged into. On its node a task
   takes the machine's own leases as well.
3. A node's process keeps its evaluator, and so its training process, for the study's next task.
4. What is lost with its node or process is sent again, up to `MOST_LOSSES` times; then the trial is
   marked, for a stack that takes its node down must not take the study along.

Only the study's process writes the store; nodes answer messages.
"""

import atexit
import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from archloop import registry
from archloop.errors import UserError
from archloop.files import usable_cache_dir
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking.budgets import Budget
from archloop.search import gate
from archloop.search.evaluator import CandidateFailed, Evaluator
from archloop.search.executors import parcels
from archloop.search.executors.parcels import Files, Parcel
from archloop.search.meter import counts_as
from archloop.search.recipe import recipe as recipes
from archloop.search.recipe.recipe import ExecutorSection, Recipe
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.text import corpora
from archloop.version import __version__
from archloop.workers.cancelling import POLL_S, CancelledError, is_cancelled

MOST_LOSSES = 3
"""Times that a job may be lost with its node or process before its trial is marked."""
_KNOCK_S = 20.0
_RECIPE = "recipe.yaml"

Resources = Mapping[str, float]
"""What a task takes of a node: CPU, GPU, or a name that the node was started with."""
Make = Callable[[Files, str | None], Evaluator]
"""On a node: an evaluator from what was sent, of one target, or of trainings alone (None)."""
_kept: dict[tuple[str, str | None], tuple[str | None, Evaluator]] = {}
"""In a node's process: evaluators by study and target, with the cards that they may see."""


class OnRay:
    """An `Evaluator` whose measurements and trainings are tasks of a Ray cluster.

    Args:
        address: of the cluster, as `ray.init` takes it.
        study: tells this study from others that use the cluster.
        targets: what measuring on each takes.
        training: what a training takes.
        make: makes the evaluator on a node.
        luggage: files that it is made from.
        budgets: of the study: whoever breaks one on a target is measured on none after it.
        num_looks: after which an estimate decides on a budget.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self,
        address: str,
        study: str,
        targets: Mapping[str, Resources],
        training: Resources,
        make: Make,
        luggage: Files,
        budgets: Sequence[Budget] = (),
        num_looks: int = 1,
    ) -> None:
        if find_spec("ray") is None:
            raise UserError('executor ray needs Ray; pip install "archloop[ray]"')
        import ray

        self._targets, self._training = targets, training
        self._study, self._make = study, make
        self._budgets, self._num_looks = budgets, num_looks
        self._corpus: str | None = None
        self._connected = not ray.is_initialized()
        if self._connected:
            try:
                _knock(address)
                ray.init(address, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"executor.address={address!r}: no Ray cluster: {str(error).splitlines()[0]}; "
                    "start one by ray start --head, or give its address"
                ) from error
        # By default Ray starts a new process for each task that takes a graphics card.
        self._task = ray.remote(max_retries=0, max_calls=0)(_work)
        self._luggage = ray.put(dict(luggage))

    @property
    def num_jobs(self) -> int:
        """Trainings that the cluster can do at once, and a measurement beside them."""
        import ray

        have = ray.cluster_resources()
        rooms = [have.get(key, 0) / amount for key, amount in _needed(self._training)]
        return 1 + max(1, int(min(rooms, default=1)))

    def prepare(self) -> dict[str, Any]:
        """As `Evaluator.prepare`: one node for each target and one for trainings are asked.

        Raises:
            UserError: a node lacks something, has other versions than this process, or reads
                another corpus; no node has the resources.
        """
        parts: list[str | None] = [None, *self._targets]
        for part in parts:
            self._check_resources(part)
        found = {part: self._run("prepare", part, Parcel("", {})) for part in parts}
        told: dict[str, Any] = dict(found[None])
        self._corpus = told.get("corpus")
        for part, each in found.items():
            for key in ("archloop", "torch", "corpus"):
                if each.get(key) != told.get(key):
                    raise UserError(
                        f"executor: a node for {part} has {key} {each.get(key)} and one for "
                        f"trainings {told.get(key)}; make them equal"
                    )
        mine = {"archloop": __version__, "torch": version("torch")}
        for key, value in mine.items():
            if told.get(key, value) != value:
                raise UserError(f"executor: nodes have {key} {told[key]}, this process {value}")
        described = [each.get("targets", {}) for each in found.values()]
        return {
            **told,
            "targets": {name: info for some in described for name, info in some.items()},
        }

    def profile(
        self,
        spec: StackSpec,
        reference: StackSpec,
        look: int,
        directory: Path,
        processes: int | None = None,
    ) -> Profiled:
        """As `Evaluator.profile`."""
        profiles, left_out, seconds = {}, {}, 0.0
        for name in self._targets:
            parcel = parcels.to_measure(spec, reference, look, directory, processes)
            answer = Parcel(*self._run("measure", name, parcel))
            found, took = parcels.measured(answer, directory)
            profiles.update(found.profiles)
            left_out.update(found.left_out)
            seconds += took
            # As on one machine (`search.hardware`): the other targets would change nothing.
            if spec != reference and gate.breaks(profiles, self._budgets, look, self._num_looks):
                break
        counts_as(seconds)
        return Profiled(profiles=profiles, left_out=left_out)

    def train(self, job: TrainJob, directory: Path) -> Rung:
        """As `Evaluator.train`."""
        answer = Parcel(*self._run("train", None, parcels.to_train(job)))
        rung, seconds = parcels.trained(answer, job, directory)
        counts_as(seconds)
        return rung

    def close(self) -> None:
        """As `Evaluator.close`: leave the cluster, which ends what still runs for the study."""
        import ray

        if self._connected and ray.is_initialized():
            ray.shutdown()

    def _run(self, what: str, part: str | None, parcel: Parcel) -> Any:
        """Have a task done, however often its node is lost.

        Raises:
            CandidateFailed: it was lost too often.
            CancelledError: it is not wanted any more.
            Exception: what the task raised.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        takes = self._training if part is None else self._targets[part]
        task = self._task.options(**_options(takes))
        lost: RayError | None = None
        for _ in range(MOST_LOSSES):
            asked = (self._study, self._make, self._luggage, what, part, tuple(parcel))
            reference = task.remote(*asked, self._corpus)
            try:
                while not ray.wait([reference], timeout=POLL_S)[0]:
                    if is_cancelled():
                        raise CancelledError("given up")
                return ray.get(reference)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                lost = error
            except BaseException:
                ray.cancel(reference, force=True)
                raise
        why = " ".join(str(lost).split())[:200]
        raise CandidateFailed(f"lost {MOST_LOSSES} times with its node or process: {why}", "gone")

    def _check_resources(self, part: str | None) -> None:
        import ray

        takes = self._training if part is None else self._targets[part]
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(key, 0) >= n for key, n in _needed(takes)) for node in nodes):
            where = "executor.train" if part is None else f"executor.targets.{part}"
            raise UserError(
                f"{where}: no node of the cluster has {dict(takes)}; start one with these "
                "resources, as by ray start --resources"
            )


def _knock(address: str) -> None:
    """Refuse an address where nobody listens, for which Ray itself would wait for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def on_ray(recipe: Recipe) -> OnRay:
    """The evaluator of a recipe's study on the cluster that it names.

    Raises:
        UserError: as `OnRay`.
    """
    section = recipe.executor
    return OnRay(
        section.address,
        recipe.digest,
        {name: section.targets.get(name) or _usual(recipe, name) for name in recipe.targets},
        section.train or _usual(recipe, None),
        on_node,
        luggage(recipe),
        recipe.budgets,
        recipe.looks,
    )


def luggage(recipe: Recipe) -> Files:
    """What a node needs of a recipe: itself, its plug-ins, and a corpus whose path is relative."""
    root = recipe.root.resolve()
    places = [
        file
        for path in recipe.proxy.corpus.paths
        if not Path(path).is_absolute()
        for file in corpora.resolve(path, root)
    ]
    if recipe.plugins is not None:
        places += sorted((root / recipe.plugins).rglob("*.py"))
    files = {str(place.relative_to(root)): place.read_bytes() for place in places}
    return {**files, _RECIPE: recipe.source}


def on_node(files: Files, part: str | None) -> Evaluator:
    """On a node: the evaluator of real studies, for one target or for trainings."""
    from archloop.search.hardware import HardwareEvaluator

    shared = usable_cache_dir(Path(tempfile.gettempdir()) / "archloop-ray") / "ray"
    home = shared / _digest(files)
    parcels.unpack({name: f for name, f in files.items() if not (home / name).exists()}, home)
    recipe = recipes.load(home / _RECIPE)
    if recipe.plugins is not None:
        registry.add_folder(home / recipe.plugins)
    targets = {} if part is None else {part: recipe.targets[part]}
    # As many threads as the processors that a training takes of the cluster.
    processors = int((recipe.executor.train or _usual(recipe, None)).get("CPU", 1))
    changes = {
        "targets": targets,
        "executor": ExecutorSection(workers=1),
        "threads": recipe.threads or max(1, processors),
    }
    return HardwareEvaluator(recipe.model_copy(update=changes), home / "artifacts")


def _digest(files: Files) -> str:
    hasher = hashlib.sha256()
    for name in sorted(files):
        hasher.update(f"{name}:{hashlib.sha256(files[name]).hexdigest()}".encode())
    return hasher.hexdigest()[:32]


def _usual(recipe: Recipe, part: str | None) -> Resources:
    """What a training or a target takes where the recipe does not say."""
    if part is None:
        on_card = recipe.proxy.device.startswith("cuda")
        share = 1 / recipe.executor.per_device
        return {"CPU": 1, "GPU": share} if on_card else {"CPU": recipe.threads or 1}
    on_card = registry.get("runtimes", recipe.targets[part].runtime).on_card
    return {"CPU": 1, "GPU": 1} if on_card else {"CPU": 1}


def _work(
    study: str,
    make: Make,
    luggage: Files,
    what: str,
    part: str | None,
    parcel: tuple[str, Files],
    corpus: str | None,
) -> Any:
    """The task, in a process of a node."""
    evaluator = _evaluator(study, make, luggage, part, corpus)
    if what == "prepare":
        return evaluator.prepare()
    do = parcels.do_measure if what == "measure" else parcels.do_train
    return tuple(do(evaluator, Parcel(*parcel)))


def _evaluator(
    study: str, make: Make, luggage: Files, part: str | None, corpus: str | None
) -> Evaluator:
    """This process's evaluator, made when first needed; a training's corpus is compared then."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen, evaluator = _kept.pop((study, part), (None, None))
    if evaluator is not None and seen != visible:
        # Its processes were started for another card.
        evaluator.close()
        evaluator = None
    if evaluator is None:
        evaluator = make(luggage, part)
        if not _kept:
            atexit.register(_close_all)
        if corpus is not None and part is None:
            found = evaluator.prepare().get("corpus")
            if found != corpus:
                raise UserError("executor: a node reads another corpus than the study began with")
    _kept[study, part] = visible, evaluator
    return evaluator


def _close_all() -> None:
    while _kept:
        _kept.popitem()[1][1].close()


def _needed(resources: Resources) -> list[tuple[str, float]]:
    return [(key, amount) for key, amount in resources.items() if amount > 0]


def _options(resources: Resources) -> dict[str, Any]:
    """Resources as Ray's options."""
    own = {key: amount for key, amount in resources.items() if key not in ("CPU", "GPU")}
    return {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
        "resources": own,
    }
