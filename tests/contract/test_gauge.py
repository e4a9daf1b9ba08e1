"""One contract for a device, for several ones, for those that are recorded, and for a recording."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
from tvm import relax, te
from tvm.target import Target

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from test_device_support import plain_server

from device_agents.host_cores import CoresBusy, HostCores
from device_agents.local import DeviceLost, LocalDevice
from device_agents.tracker import TrackerProcess
from schemas.config import MeasureConfig
from schemas.table import Measurement
from schemas.target import TargetConfig
from workers.compiling.builder import Library
from workers.errors import UserError
from workers.measuring.device_gauge import DeviceGauge
from workers.measuring.gauge import Gauge, OutputCheck, ProgramFailed, Question
from workers.measuring.recording import RecordingGauge, ReplayGauge
from workers.measuring.setup import Device, open_device

CONFIG = MeasureConfig(
    program_repeats=3,
    program_min_repeat_ms=1,
    model_repeats=4,
    model_min_repeat_ms=1,
    answer_timeout_s=4.0,
)
LLVM = {"kind": "llvm", "num-cores": 1}
SIZE = 1024
SHAPE = (2, 3, 4, 4)
IMAGES = np.random.default_rng(0).standard_normal((6, *SHAPE[1:])).astype("float32")


@dataclass(frozen=True)
class Libraries:
    add: Library
    add_again: Library
    add_one_more: Library
    crash: Library
    hang: Library
    double: Path
    triple: Path


def program(path: Path, more: float, size: int = SIZE) -> Library:
    a, b = (te.placeholder((size,), name=name) for name in "ab")
    function = te.create_prim_func(
        [a, b, te.compute((size,), lambda i: a[i] + b[i] + more, name="c")]
    )
    return exported(path, function, 3, size)


def external(path: Path, name: str, argument: int) -> Library:
    a = te.placeholder((SIZE,), name="a")
    call = tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", name, argument))
    c = te.extern((SIZE,), [a], lambda inputs, outputs: call, name="c")
    return exported(path, te.create_prim_func([a, c]), 2)


def exported(path: Path, function: tvm.tirx.PrimFunc, arguments: int, size: int = SIZE) -> Library:
    built = tvm.compile(function.with_attr("global_symbol", "main"), target=Target(LLVM))
    built.export_library(str(path))
    return Library(path, (("float32", (size,)),) * arguments)


def network(path: Path, factor: float) -> Path:
    """(2, 3, 4, 4) -> (2, 48), every number times ``factor``."""
    block = relax.BlockBuilder()
    image = relax.Var("image", relax.TensorType(SHAPE, "float32"))
    with block.function("main", [image]):
        with block.dataflow():
            scaled = block.emit(relax.op.multiply(image, relax.const(factor, "float32")))
            logits = block.emit(relax.op.reshape(scaled, (2, 48)))
            output = block.emit_output(relax.Tuple([logits]))
        block.emit_func_output(output)
    tvm.compile(block.get(), target=Target(LLVM)).export_library(str(path))
    return path


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    folder = tmp_path_factory.mktemp("libraries")
    return Libraries(
        program(folder / "add.so", 0.0),
        program(folder / "add_again.so", 0.0),
        program(folder / "add_one_more.so", 1.0),
        external(folder / "crash.so", "raise", 11),
        external(folder / "hang.so", "sleep", 60),
        network(folder / "double.so", 2.0),
        network(folder / "triple.so", 3.0),
    )


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    (folder / "scratch").mkdir()
    target = TargetConfig(tvm_target=LLVM)
    opened = open_device(target, CONFIG, folder / "locks", folder / "scratch")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """Two devices under one key."""
    folder = tmp_path_factory.mktemp("fleet")
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        tracker = stack.enter_context(TrackerProcess())
        for core in (cores[0], cores[-1]):
            target = TargetConfig(key="rack", cores=[core])
            device = stack.enter_context(LocalDevice(target, tracker.host, tracker.port))
            device.start()
        target = TargetConfig(
            device="tracker", tvm_target=LLVM, key="rack", tracker_port=tracker.port
        )
        opened = open_device(target, CONFIG, folder / "locks", folder)
        stack.callback(opened.close)
        yield opened


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device with a server of TVM's own, as phones and boards have."""
    folder = tmp_path_factory.mktemp("plain")
    with TrackerProcess() as tracker, plain_server(tracker.port, "phone"):
        target = TargetConfig(
            device="tracker", tvm_target=LLVM, key="phone", tracker_port=tracker.port
        )
        opened = open_device(target, CONFIG, folder / "locks", folder)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def recording(
    device: Device, libraries: Libraries, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A recording of every question of this module."""
    path = tmp_path_factory.mktemp("recording") / "device.jsonl"
    gauge = RecordingGauge(device.gauge, path)
    gauge.measure("add", libraries.add)
    for ask in (libraries.crash, libraries.hang):
        with pytest.raises(ProgramFailed):
            gauge.measure(ask.path.stem, ask)
    gauge.check("equal", libraries.add, libraries.add_again)
    gauge.check("wrong", libraries.add, libraries.add_one_more)
    gauge.compare("pair", libraries.double, libraries.triple, SHAPE)
    gauge.attribute("inside", libraries.triple, SHAPE)
    gauge.run("run", libraries.triple, IMAGES, 2)
    gauge.release()
    return path


@pytest.fixture(params=["device", "recorded device", "fleet", "recorded fleet", "replay"])
def gauge(request: pytest.FixtureRequest, tmp_path: Path) -> Gauge:
    if request.param == "replay":
        return ReplayGauge(request.getfixturevalue("recording"))
    recorded, _, name = request.param.rpartition(" ")
    real: Gauge = request.getfixturevalue(name).gauge
    return RecordingGauge(real, tmp_path / "device.jsonl") if recorded else real


@pytest.fixture
def kind(gauge: Gauge) -> str:
    """What measurements of the gauge say of their origin."""
    if isinstance(gauge, ReplayGauge):
        return "replay"
    return "tracker" if gauge.device_model.startswith("rack-") else "local"


def test_a_recording_has_the_device_model_of_its_device(recording: Path, device: Device) -> None:
    assert ReplayGauge(recording).device_model == device.gauge.device_model != ""


def test_a_measurement_says_where_it_is_from(gauge: Gauge, kind: str, libraries: Libraries) -> None:
    found = gauge.measure("add", libraries.add)
    assert len(found.run_ms) == CONFIG.program_repeats
    assert all(0 < milliseconds < 10 for milliseconds in found.run_ms)
    assert found.device_kind == kind
    assert found.device != "" and found.threads >= 1 and found.measured_at > 1.6e9


def test_a_program_may_be_timed_with_its_weights_out_of_the_caches(
    device: Device, tmp_path: Path
) -> None:
    library = program(tmp_path / "large_add.so", 0.0, 1 << 17)
    warm = device.gauge.measure("warm", library)
    cold = device.gauge.measure("cold", replace(library, is_timed_cold=True))
    assert len(cold.run_ms) > len(warm.run_ms), "single calls scatter more"
    assert cold.latency_ms > warm.latency_ms


@pytest.mark.parametrize("name", ["crash", "hang"])
def test_a_program_that_does_not_run_fails_alone(
    gauge: Gauge, libraries: Libraries, name: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ProgramFailed):
        gauge.measure(name, getattr(libraries, name))
    assert gauge.measure("add", libraries.add).run_ms
    assert time.monotonic() - began < 30


def test_of_many_programs_each_is_answered_once(gauge: Gauge, libraries: Libraries) -> None:
    names = ["add", "crash", "add", "add", "crash", "add"]
    questions = [Question(name, getattr(libraries, name)) for name in names]
    answers = list(gauge.measure_all(questions))
    assert sorted(index for index, _ in answers) == list(range(len(names)))
    kinds = {"add": Measurement, "crash": ProgramFailed}
    assert all(isinstance(answer, kinds[names[index]]) for index, answer in answers)
    assert list(gauge.measure_all([])) == []


def test_what_belongs_together_is_answered_by_one_device(
    gauge: Gauge, libraries: Libraries
) -> None:
    stretches = [number for number in range(3) for _ in range(3)]
    questions = [Question("add", libraries.add, stretch) for stretch in stretches]
    answers = list(gauge.measure_all(questions))
    assert sorted(index for index, _ in answers) == list(range(9))
    for number in range(3):
        own = [answer for index, answer in answers if stretches[index] == number]
        assert all(isinstance(answer, Measurement) for answer in own)
        assert len({answer.device for answer in own if isinstance(answer, Measurement)}) == 1


def test_the_rest_of_many_need_not_be_waited_for(gauge: Gauge, libraries: Libraries) -> None:
    answers = gauge.measure_all([Question("add", libraries.add)] * 6)
    index, _ = next(answers)
    answers.close()
    assert 0 <= index < 6
    assert gauge.measure("add", libraries.add).run_ms


def test_one_by_one_all_are_measured_on_the_same_device(gauge: Gauge, libraries: Libraries) -> None:
    list(gauge.measure_all([Question("add", libraries.add)] * 4))
    assert len({gauge.measure("add", libraries.add).device for _ in range(4)}) == 1


def test_outputs_are_compared(gauge: Gauge, libraries: Libraries) -> None:
    equal = gauge.check("equal", libraries.add, libraries.add_again)
    assert equal.max_abs_error == 0.0 and 1 < equal.max_abs_output < 20
    wrong = gauge.check("wrong", libraries.add, libraries.add_one_more)
    assert wrong == OutputCheck(pytest.approx(1.0, abs=1e-5), equal.max_abs_output)


def test_a_comparison_is_paired(gauge: Gauge, kind: str, libraries: Libraries) -> None:
    found = gauge.compare("pair", libraries.double, libraries.triple, SHAPE)
    assert len(found.reference_ms) == len(found.candidate_ms) >= CONFIG.model_repeats
    assert min(found.reference_ms + found.candidate_ms) > 0
    assert found.reference.run_ms == found.reference_ms
    assert found.candidate.run_ms == found.candidate_ms
    assert {found.reference.device_kind, found.candidate.device_kind} == {kind}
    assert found.reference.device == found.candidate.device
    assert found.reference.canary_ratio is not None


def test_a_networks_calls_are_timed_inside_it(gauge: Gauge, libraries: Libraries) -> None:
    found = gauge.attribute("inside", libraries.triple, SHAPE)
    assert found is not None and found.model_ms > 0
    ((name, latency_ms),) = found.calls
    assert "multiply" in name and 0 <= latency_ms < found.model_ms


def test_logits_come_in_the_order_of_the_images(gauge: Gauge, libraries: Libraries) -> None:
    logits = gauge.run("run", libraries.triple, IMAGES, 2)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, (3 * IMAGES).reshape(6, 48))


def test_a_released_device_answers_again(gauge: Gauge, libraries: Libraries) -> None:
    gauge.release()
    gauge.release()
    assert gauge.measure("add", libraries.add).run_ms
    gauge.release()


def test_device_time_is_counted_where_there_is_a_device(
    gauge: Gauge, kind: str, libraries: Libraries
) -> None:
    before = gauge.device_s
    gauge.measure("add", libraries.add)
    assert (gauge.device_s > before) == (kind != "replay")


def test_a_missing_answer_is_the_users_error(recording: Path, libraries: Libraries) -> None:
    gauge = ReplayGauge(recording)
    with pytest.raises(UserError, match="has no answer to other; record anew"):
        gauge.measure("other", libraries.add)
    with pytest.raises(UserError, match="has no answer to other"):
        gauge.compare("other", libraries.double, libraries.triple, SHAPE)


def test_a_canary_that_loses_the_session_costs_no_comparison(
    device: Device, libraries: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = device.gauge
    gauge.release()
    call = gauge._process.call  # type: ignore[attr-defined]

    def lose(method: str, *values: object, **more: object) -> object:
        if method == "canary":
            gauge._process.stop()  # type: ignore[attr-defined]
        return call(method, *values, **more)

    monkeypatch.setattr(gauge._process, "call", lose)  # type: ignore[attr-defined]
    found = gauge.compare("pair", libraries.double, libraries.triple, SHAPE)
    assert found.reference.device != ""
    monkeypatch.undo()
    assert gauge.measure("add", libraries.add).run_ms


def test_a_plain_tvm_server_measures_without_a_canary(plain: Device, libraries: Libraries) -> None:
    found = plain.gauge.measure("add", libraries.add)
    assert len(found.run_ms) == CONFIG.program_repeats
    assert found.device_kind == "tracker" and found.device.startswith("phone@")
    assert found.canary_ratio is None
    cold = plain.gauge.measure("cold", replace(libraries.add, is_timed_cold=True))
    assert len(cold.run_ms) > len(found.run_ms)
    pair = plain.gauge.compare("pair", libraries.double, libraries.triple, SHAPE)
    assert len(pair.reference_ms) == len(pair.candidate_ms) >= CONFIG.model_repeats
    assert pair.reference.canary_ratio is None and pair.candidate.canary_ratio is None


def test_a_plain_tvm_server_tells_outputs_but_not_calls(
    plain: Device, libraries: Libraries
) -> None:
    wrong = plain.gauge.check("wrong", libraries.add, libraries.add_one_more)
    assert wrong.max_abs_error == pytest.approx(1.0, abs=1e-5)
    logits = plain.gauge.run("run", libraries.triple, IMAGES, 2)
    assert np.array_equal(logits, (3 * IMAGES).reshape(6, 48))
    assert plain.gauge.attribute("inside", libraries.triple, SHAPE) is None
    plain.gauge.release()
    assert plain.gauge.measure("add", libraries.add).run_ms


def test_a_device_with_a_core_mask_measures_alone_too(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    target = TargetConfig(tvm_target=LLVM, cores=[core])
    opened = open_device(target, CONFIG, tmp_path / "locks", tmp_path)
    try:
        assert opened.cores is not None
        worker = HostCores(tmp_path / "locks", opened.cores.name)
        with opened.gauge.alone(), pytest.raises(CoresBusy), worker.working(0.1):
            pass
    finally:
        opened.close()


def test_a_device_that_runs_on_other_cores_than_its_mask_is_refused(
    libraries: Libraries, tmp_path: Path
) -> None:
    core = min(os.sched_getaffinity(0))
    target = TargetConfig(tvm_target=LLVM, cores=[core])
    opened = open_device(target, CONFIG, tmp_path / "locks", tmp_path)
    gauge = opened.gauge
    assert isinstance(gauge, DeviceGauge) and gauge._address.cores == (core,)
    gauge._address = replace(gauge._address, cores=(core + 1,))
    try:
        with pytest.raises(DeviceLost, match=r"runs on cores \[\d+\], targets\[\]\.cores says"):
            gauge.measure("add", libraries.add)
    finally:
        opened.close()


Ask = Callable[[Gauge, Libraries], object]
WHOLE_NETWORKS: dict[str, Ask] = {
    "pair": lambda gauge, found: gauge.compare("pair", found.double, found.triple, SHAPE),
    "attribute": lambda gauge, found: gauge.attribute("inside", found.triple, SHAPE),
    "run": lambda gauge, found: gauge.run("run", found.triple, IMAGES, 2),
}


class Strikes:
    """Kills the local device over the first so many questions of a kind; counts all of them."""

    def __init__(self, device: Device, method: str, times: int, patch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        gauge = device.gauge
        process, agent = gauge._process, gauge._local  # type: ignore[attr-defined]
        call = process.call

        def struck(asked: str, *values: object, **more: object) -> object:
            if asked == method:
                self.asked += 1
                if self.asked <= times:
                    server = psutil.Process(agent.local.pid)
                    family = [server, *server.children(recursive=True)]
                    for member in family:
                        member.kill()
                    psutil.wait_procs(family, timeout=5)
            return call(asked, *values, **more)

        patch.setattr(process, "call", struck)


@pytest.mark.parametrize("method", WHOLE_NETWORKS)
def test_a_whole_network_outlives_one_loss_of_the_local_device(
    device: Device, libraries: Libraries, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strikes = Strikes(device, method, 1, monkeypatch)
    assert WHOLE_NETWORKS[method](device.gauge, libraries) is not None
    assert strikes.asked == 2


def _raises(gauge: Gauge, found: Libraries) -> object:
    return gauge.run("run", found.triple, IMAGES[:, :, :2], 2)


def _program(gauge: Gauge, found: Libraries) -> object:
    return gauge.measure("add", found.add)


@pytest.mark.parametrize(
    ("method", "losses", "ask", "asked"),
    [("pair", 2, WHOLE_NETWORKS["pair"], 2), ("run", 0, _raises, 1), ("program", 1, _program, 1)],
    ids=["a network that loses the device twice", "a network that raises", "a program"],
)
def test_what_is_asked_no_more_has_failed_and_the_device_goes_on(
    device: Device,
    libraries: Libraries,
    method: str,
    losses: int,
    ask: Ask,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strikes = Strikes(device, method, losses, monkeypatch)
    with pytest.raises(ProgramFailed):
        ask(device.gauge, libraries)
    assert strikes.asked == asked
    assert device.gauge.measure("add", libraries.add).run_ms
