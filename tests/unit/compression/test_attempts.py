"""Attempts: followed once, measured, kept, and begun anew when something stopped them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from loopwright.compression import attempts
from loopwright.compression.artefact import Artefact, save
from loopwright.compression.attempts import attempt, candidates, find, key_of, opened, report
from loopwright.compression.candidate import Status
from loopwright.compression.judging import Parent
from loopwright.compression.recipe import Recipe
from loopwright.compression.steps import CannotExport, Work
from loopwright.compression.subject import Samples, Subject
from loopwright.kernel.errors import BadInput, NotFound, Tampered, Unavailable
from loopwright.stats.metrics import metric
from loopwright.training.recorder import Recorder
from tests.unit.compression.example_graphs import Blur, linear, linear_samples, linear_subject, model_of

ROOT = Path(__file__).parents[3]
BLUR = Recipe("blur", (Blur(0.1),))


@dataclass(frozen=True)
class Fails:
    """A step that ends in the error called `kind`."""

    name: ClassVar[str] = "fails"
    kind: str = "export"
    bits: ClassVar[float] = 8.0
    keeps: ClassVar[float] = 1.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        (work.shared / "cooked").open("a").write("once\n")
        work.notes.metrics({"loss": float("nan")})
        if self.kind == "time":
            replace(work, until=0.0).check_time()
        if self.kind == "memory":
            held = np.ones(10_000_000)
            assert len(held)
        raise {
            "export": CannotExport("this layer has no such form", where="layer 3"),
            "unavailable": Unavailable("the disk is full", where="here"),
            "crash": RuntimeError("mat1 and mat2\nshapes"),
            "memory": CannotExport("too much"),
            "stop": KeyboardInterrupt(),
        }[self.kind]


@dataclass(frozen=True)
class Dynamic:
    """Quantizes activations by the range of each batch."""

    name: ClassVar[str] = "dynamic"
    bits: ClassVar[float] = 8.0

    def encode(self, source: Artefact, target: Path, work: Work) -> Artefact:
        quantize_dynamic(source.path, target, weight_type=QuantType.QInt8)
        return Artefact.open(target)


class Server:
    """A tracking server in memory, as `training.Recorder` wants one; starts runs as the project's pipeline does."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.metrics: dict[str, dict[str, list[float]]] = {}
        self.params: dict[str, dict[str, str]] = {}
        self.files: dict[str, list[str]] = {}
        self.ended: dict[str, str] = {}

    def start(self, name: str, params: Mapping[str, Any]) -> Recorder:
        run = Recorder(self, "compression", name, {}, self.spool)
        run.params(params)
        return run

    def add(self, run_id: str, figures: Mapping[str, float]) -> None:
        self.log(run_id, [(name, value, 0, 0) for name, value in figures.items()], {}, {})

    def killed(self, run_id: str) -> None:
        self.ended[run_id] = "KILLED"

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        run_id = f"run-{len(self.metrics)}"
        self.metrics[run_id], self.params[run_id], self.files[run_id] = {}, {}, []
        return run_id

    def log(
        self, run_id: str, metrics: Sequence[Any], params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        for name, value, _, _ in metrics:
            self.metrics[run_id].setdefault(name, []).append(value)
        self.params[run_id] |= params

    def artifact(self, run_id: str, file: Path, name: str) -> None:
        self.files[run_id].append(name)

    def end_run(self, run_id: str, status: str, ended_ms: int) -> None:
        self.ended[run_id] = status


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return linear_subject(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "work"


def cooked(folder: Path) -> int:
    """How often a recipe was followed in `folder`."""
    return sum(len(file.read_text().splitlines()) for file in folder.glob("shared/*/cooked"))


def files(folder: Path, key: str) -> set[str]:
    own = folder / "candidates" / key
    return {str(path.relative_to(own)) for path in own.rglob("*")}


def test_an_attempt_is_measured_and_kept(subject: Subject, folder: Path) -> None:
    found = attempt(BLUR, subject, folder)
    assert found.measured and found.why == "" and found.name == "blur"
    assert found.file == f"candidates/{found.key}/model.onnx"
    assert found.size == (folder / found.file).stat().st_size and found.original_size == subject.graph.size
    assert found.digest == Artefact.open(folder / found.file).digest and found.parameters == 80
    assert found.validation is not None and found.validation.rows == 300 and found.validation.loss > 0
    assert found.agreement is not None and 0.5 < (found.agreement.argmax or 0) < 1
    assert found.latency is not None and found.latency.calls == 600 and found.latency.p99 >= found.latency.p50
    assert found.alone is not None and found.alone < 1e-5 and found.test is None
    assert found.counts == {"blur/size": 0.1}
    assert found.curve == {"blur/loss": [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]}
    assert found.seconds > 0 and found.peak_mb >= found.held_mb > 10
    # What the step wrote on its way is gone; what is kept reads back as it was.
    assert files(folder, found.key) == {"model.onnx", "candidate.json", "run"}
    assert find(folder, found.key) == found and candidates(folder) == [found]


def test_equal_work_is_done_once_whatever_it_is_called(subject: Subject, folder: Path) -> None:
    first = attempt(BLUR, subject, folder)
    again = attempt(Recipe("softly", (Blur(0.1),), control="none"), subject, folder)
    assert cooked(folder) == 1 and again == replace(first, name="softly", control="none")


def test_other_work_is_other_work(subject: Subject, folder: Path, tmp_path: Path) -> None:
    parent = Parent.of(subject)
    _, samples = linear_samples()
    fewer = Samples(samples.train.take(np.arange(299)), samples.validation, samples.test)
    keys = {
        key_of(BLUR, parent, 7),
        key_of(BLUR, parent, 8),
        key_of(Recipe("blur", (Blur(0.2),)), parent, 7),
        key_of(Recipe("blur", (Blur(0.1), Blur(0.1))), parent, 7),
        key_of(BLUR, Parent.of(replace(subject, samples=fewer)), 7),
    }
    assert len(keys) == 5
    attempt(BLUR, subject, folder)
    attempt(BLUR, subject, folder, seed=8)
    assert cooked(folder) == 2 and len(candidates(folder)) == 2


@dataclass(frozen=True)
class Learns:
    """A step on modules, for a recipe that trains."""

    name: ClassVar[str] = "learns"

    def reshape(self, network: Any, work: Work) -> Any:
        return network


def test_another_way_to_judge_or_to_train_is_other_work(subject: Subject, folder: Path) -> None:
    def turned(share: float) -> Any:
        return lambda answers: answers if share else answers[:, ::-1]

    def learning(module: str, share: float) -> Subject:
        network = SimpleNamespace(module=module, loss=lambda answers, truth: share * truth)
        return replace(subject, network=cast(Any, network))

    judged = [subject, *(replace(subject, answer=turned(share)) for share in (0.0, 1.0))]
    judged.append(replace(subject, metric=replace(subject.metric, prepare=metric("brier").prepare)))
    assert len({key_of(BLUR, Parent.of(one), 7) for one in judged}) == 4
    again = replace(subject, answer=turned(0.0))
    assert key_of(BLUR, Parent.of(again), 7) == key_of(BLUR, Parent.of(judged[1]), 7)
    before, after = (attempt(BLUR, one, folder).validation for one in (subject, judged[1]))
    assert before is not None and after is not None and after.parent < before.parent - 0.3
    learners = [learning("Linear()", 0.5), learning("Linear()", 0.7), learning("Linear(dropout=0.1)", 0.5)]
    recipe = Recipe("learns", (Learns(),))
    assert len({key_of(recipe, Parent.of(one), 7) for one in learners}) == 3
    assert len({key_of(BLUR, Parent.of(one), 7) for one in (*learners, subject)}) == 1


def test_truth_that_the_answers_have_no_place_for_is_the_callers_error(
    subject: Subject, folder: Path
) -> None:
    samples = subject.samples
    beyond = replace(samples, validation=replace(samples.validation, y=samples.validation.y + 9))
    wrong = replace(subject, samples=beyond, metric=metric("log_loss"))
    with pytest.raises(BadInput, match=r"class indices from 0 on"):
        attempt(BLUR, wrong, folder)
    assert candidates(folder) == []


def test_the_empty_recipe_is_the_parent_itself(subject: Subject, folder: Path) -> None:
    found = attempt(Recipe("original", ()), subject, folder)
    assert found.measured and found.ratio == 1.0 and found.digest == subject.graph.digest
    assert found.validation is not None and found.validation.loss_low == found.validation.loss_high == 0
    assert found.agreement is not None and found.agreement.argmax == 1 and found.agreement.largest == 0
    assert subject.graph.path.is_file()


def test_a_recipe_that_cannot_be_exported_is_a_result_and_not_tried_again(
    subject: Subject, folder: Path
) -> None:
    recipe = Recipe("fails", (Fails(),))
    found = attempt(recipe, subject, folder)
    assert found.status is Status.FAILED and found.why == "layer 3: this layer has no such form"
    assert found.floor == 80 and found.counts == {"fails/loss.not_finite": 1.0} and found.file == ""
    assert attempt(recipe, subject, folder) == found and cooked(folder) == 1
    assert files(folder, found.key) == {"candidate.json", "run"}
    assert found.peak_mb > 0


@pytest.mark.parametrize(
    ("kind", "says"),
    [("unavailable", "here: the disk is full"), ("crash", "RuntimeError: mat1 and mat2 shapes")],
)
def test_what_may_go_better_the_next_time_is_tried_again(
    subject: Subject, folder: Path, kind: str, says: str
) -> None:
    recipe = Recipe("fails", (Fails(kind),))
    found = attempt(recipe, subject, folder)
    assert found.status is Status.FAILED and found.why == says and find(folder, found.key) == found
    assert attempt(recipe, subject, folder).why == says and cooked(folder) == 2
    trace = folder / "candidates" / found.key / "traceback.txt"
    assert trace.is_file() == (kind == "crash")
    if kind == "crash":
        assert "in encode" in trace.read_text()


def test_what_ran_out_of_time_is_skipped_and_not_kept(subject: Subject, folder: Path) -> None:
    found = attempt(Recipe("fails", (Fails("time"),)), subject, folder)
    assert found.status is Status.SKIPPED and "--budget" in found.why
    assert find(folder, found.key) is None and files(folder, found.key) == set()


def test_the_memory_that_a_step_took_is_told(subject: Subject, folder: Path) -> None:
    found = attempt(Recipe("fails", (Fails("memory"),)), subject, folder)
    assert 70 < found.peak_mb - found.held_mb < 200


def test_a_candidate_whose_answers_depend_on_the_batch_is_refused_where_batches_are_made(
    subject: Subject, folder: Path
) -> None:
    recipe = Recipe("dynamic", (Dynamic(),))
    assert attempt(recipe, subject, folder).measured
    found = attempt(recipe, replace(subject, batch_free=True), folder)
    assert found.status is Status.FAILED and found.size and found.alone is not None and found.alone > 1e-3
    assert "depends on what else is in its batch" in found.why and f"{found.alone:.3g}" in found.why


def test_a_parent_that_cannot_answer_is_the_callers_error(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    root = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Sqrt", ["z"], ["y"])]
    graph = save(model_of(root, {"w": linear_samples()[0]}), tmp_path / "root.onnx")
    with pytest.raises(BadInput, match="answers that are no numbers"):
        attempt(BLUR, replace(subject, graph=graph), folder)
    assert not candidates(folder)


def test_test_rows_are_asked_when_a_report_is_wanted(subject: Subject, folder: Path) -> None:
    found = attempt(BLUR, subject, folder)
    told = report(found, subject, folder)
    assert told.test is not None and told.test.value != found.validation.value  # type: ignore[union-attr]
    assert replace(told, test=None) == found and find(folder, found.key) == told
    assert report(told, subject, folder) is told and attempt(BLUR, subject, folder) == told
    with pytest.raises(BadInput, match="only what was measured"):
        report(attempt(Recipe("fails", (Fails(),)), subject, folder), subject, folder)


def test_a_file_that_is_not_what_was_measured_is_not_used(subject: Subject, folder: Path) -> None:
    found = attempt(BLUR, subject, folder)
    save(linear(np.ones((20, 4), np.float32)), folder / found.file)
    with pytest.raises(Tampered, match="was changed"):
        opened(found, folder)
    assert attempt(BLUR, subject, folder).digest == found.digest and cooked(folder) == 2
    (folder / found.file).unlink()
    with pytest.raises(NotFound, match="is gone"):
        opened(found, folder)
    assert attempt(BLUR, subject, folder).digest == found.digest and cooked(folder) == 3


def test_records_that_cannot_be_read_are_told(subject: Subject, folder: Path) -> None:
    found = attempt(BLUR, subject, folder)
    record = folder / "candidates" / found.key / "candidate.json"
    said = json.loads(record.read_bytes())
    record.write_bytes(json.dumps(said | {"form": 0}).encode())
    assert find(folder, found.key) is None  # of another version of this program: measured anew
    del said["candidate"]["status"]
    record.write_bytes(json.dumps(said).encode())
    with pytest.raises(BadInput, match=r"cannot be read.*Delete its folder"):
        find(folder, found.key)
    with pytest.raises(BadInput, match="12 hex digits"):
        find(folder, "../../etc")


def test_weights_beside_the_graph_are_kept_with_it(subject: Subject, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "large" / "large.onnx"
    path.parent.mkdir()
    onnx.save_model(
        linear(linear_samples()[0]),
        str(path),
        save_as_external_data=True,
        location="large.bin",
        size_threshold=0,
    )
    found = attempt(Recipe("original", ()), replace(subject, graph=Artefact.open(path)), folder)
    assert files(folder, found.key) == {"model.onnx", "large.bin", "candidate.json", "run"}
    assert found.size == path.stat().st_size + 320 and opened(found, folder).size == found.size


def test_every_attempt_is_a_run_with_its_file_figures_and_end(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    server = Server(tmp_path / "spool")
    found = attempt(BLUR, subject, folder, tracking=server)
    run, quality, latency = found.run_id, found.validation, found.latency
    assert quality is not None and latency is not None and server.ended == {run: "FINISHED"}
    assert server.files[run] == ["candidate.json", "model.onnx"]
    kept = server.metrics[run]
    assert kept["blur/loss"] == [1.0, 0.5, pytest.approx(1 / 3)] and kept["size"] == [found.size]
    assert kept["validation/loss_high"] == [quality.loss_high] and kept["latency/p99"] == [latency.p99]
    assert (
        json.loads(server.params[run]["recipe"]) == BLUR.to_json()
        and server.params[run]["blur/kind"] == "noise"
    )
    told = report(found, subject, folder, tracking=server)
    assert told.test is not None and server.metrics[run]["test/loss"] == [told.test.loss]
    attempt(BLUR, subject, folder, tracking=server)
    assert len(server.metrics) == 1  # what was measured before is no new run
    failed = attempt(Recipe("fails", (Fails("crash"),)), subject, folder, tracking=server)
    assert server.ended[failed.run_id] == "FAILED" and "traceback.txt" in server.files[failed.run_id]
    assert "mat1 and mat2" in server.params[failed.run_id]["why"]


def test_a_user_who_stops_it_stops_it(subject: Subject, folder: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "spool")
    with pytest.raises(KeyboardInterrupt):
        attempt(Recipe("fails", (Fails("stop"),)), subject, folder, tracking=server)
    assert list(server.ended.values()) == ["KILLED"] and not candidates(folder)


def test_settings_that_two_steps_tell_differently_are_both_kept() -> None:
    heard: dict[str, Any] = {}

    class Once:
        """As a tracking server: a parameter keeps its first value."""

        def params(self, values: Mapping[str, Any]) -> None:
            assert not set(values) & set(heard)
            heard.update(values)

        def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...

    book = attempts._Book(Once())
    book.params({"layers": 3})
    book.params({"layers": 5})
    assert heard == book.counts() == {"layers": 3, "layers-2": 5}
    for step in range(5000):
        book.metrics({"loss": step if step % 2 else float("inf")}, step)
    curve = book.curves()["loss"]
    assert len(curve) == 1000 and curve[0] == (1, 1.0) and curve[-1] == (4999, 4999.0)
    assert book.counts()["loss.not_finite"] == 2500


def test_of_two_at_the_same_attempt_one_waits(subject: Subject, folder: Path) -> None:
    found: list[Any] = []
    both = [threading.Thread(target=lambda: found.append(attempt(BLUR, subject, folder))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert len(found) == 2 and found[0] == found[1] and cooked(folder) == 1


KILLED = """
import functools, json, os, signal, sys, traceback
from pathlib import Path
from loopwright.compression import attempts
from loopwright.compression.recipe import Recipe
from tests.unit.compression.example_graphs import Blur, linear_subject

attempts.compare = functools.partial(attempts.compare, rounds=1, calls=3)
attempts.quality = functools.partial(attempts.quality, resamples=100)
folder = Path(sys.argv[1])
subject = linear_subject(folder)

class Run(attempts.UntrackedRun):
    run_id = "first"

class Tracking(attempts.Untracked):
    def __init__(self):
        self.ended = []
    def start(self, name, params):
        return Run()
    def killed(self, run_id):
        self.ended.append(run_id)

def die_before(change):
    made = 0
    def hook(event, said):
        nonlocal made
        name = str(said[0]) if said else ""
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile") or (
            event == "open" and isinstance(said[2], int) and said[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and name.startswith(str(folder)):
            made += 1
            if made > change:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def attempt(place, tracking):
    return attempts.attempt(Recipe("blur", (Blur(0.1),)), subject, place, tracking=tracking)

def in_child(work):
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def resumed(place):
    left = [path.name for path in place.glob("candidates/*/*")]
    before = len([1 for path in place.glob("shared/*/cooked") for _ in path.open()])
    tracking = Tracking()
    found = attempt(place, tracking)
    print(json.dumps({
        "left": left, "ended": tracking.ended, "measured": found.measured, "file": found.file,
        "digest": attempts.opened(found, place).digest, "before": before,
        "kept": sorted(path.name for path in place.glob(f"candidates/{found.key}/*")),
        "cooked": len([1 for path in place.glob("shared/*/cooked") for _ in path.open()]),
    }), flush=True)

for change in range(1000):
    place = folder / f"work-{change}"
    ended = in_child(lambda: (die_before(change), attempt(place, Tracking())))
    if ended != -signal.SIGKILL:
        break
    if in_child(lambda: resumed(place)):
        ended = 1
        break
print(json.dumps(ended))
"""


def test_whatever_change_on_disk_a_kill_comes_before_the_work_goes_on_from_it(tmp_path: Path) -> None:
    """A process is killed before its first change in the folder, another before its second, and so on to the last."""
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], timeout=600, check=False, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    *found, ended = (json.loads(line) for line in ran.stdout.splitlines())
    assert ended == 0, ran.stderr[-2000:]
    assert len(found) > 10 and len({one["digest"] for one in found}) == 1
    for one in found:
        assert one["measured"] and one["kept"] == ["candidate.json", "model.onnx", "run"]
        # No figures before all is done; a run that had begun is ended, and the work is done again.
        assert "candidate.json" not in one["left"] and one["cooked"] == one["before"] + 1
        assert one["ended"] == (["first"] if "run" in one["left"] else [])
    assert {one["before"] for one in found} == {0, 1} and [] in [one["left"] for one in found]
    assert any("scratch" in one["left"] for one in found) and any(
        "model.onnx" in one["left"] for one in found
    )
