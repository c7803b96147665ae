import json
import stat
from pathlib import Path

import pytest

from sandbox.errors import EngineError
from sandbox.node.gpu import cdi
from sandbox.node.gpu.model import Gpu, Inventory
from sandbox.node.gpu.pool import GpuPool

GOLDEN = Path(__file__).parent / "golden"
DRIVER = "580.178.04"
ONE = "GPU-955ef018-3bd9-5f27-80b3-fa20ee8d19c5"
TWO = "GPU-0a1b2c3d-0000-1111-2222-333344445555"


def gpu(uuid, minor):
    return Gpu(uuid=uuid, name="NVIDIA H200", memory=2**37, reserved=2**29, driver=DRIVER, minor=minor)


def libraries(folder, *, optional):
    folder.mkdir(parents=True)
    for name in (*cdi._NEEDED, *(cdi._OPTIONAL if optional else ())):
        (folder / f"{name}.{DRIVER}").touch()
    return {name: Path("/usr/lib/x86_64-linux-gnu") / file.name for name, file in cdi.find_libraries(DRIVER, [folder]).items()}


@pytest.mark.parametrize(
    ("golden", "gpus", "machine", "optional"),
    [
        ("cdi-one.json", [gpu(ONE, 0)], "x86_64", False),
        ("cdi-two-full.json", [gpu(ONE, 3), gpu(TWO, 0)], "x86_64", True),
        ("cdi-arm.json", [gpu(ONE, 0)], "aarch64", False),
    ],
)
def test_the_specification_is_the_golden_one(tmp_path, golden, gpus, machine, optional):
    spec = cdi.specification(gpus, libraries(tmp_path / "lib", optional=optional), machine=machine)
    assert json.loads((GOLDEN / golden).read_text(encoding="utf-8")) == spec


def part(number):
    return Gpu(
        uuid=f"MIG-0000000{number}-aaaa-4000-8000-00000000000{number}", name="A100 MIG 20gb", memory=2**34, reserved=0, driver=DRIVER,
        minor=2, parent=ONE, instance=(number, 0),
    )  # fmt: skip


def test_mig_instances_have_their_two_capability_nodes_and_no_others(tmp_path):
    minors = tmp_path / "mig-minors"
    minors.write_text("config 1\nmonitor 2\ngpu2/gi1/access 12\ngpu2/gi1/ci0/access 13\ngpu2/gi2/access 21\ngpu2/gi2/ci0/access 22\n")
    known = cdi.mig_capabilities(minors)
    found = libraries(tmp_path / "lib", optional=False)
    spec = cdi.specification([part(1), part(2), gpu(TWO, 0)], found, capabilities=known)
    assert json.loads((GOLDEN / "cdi-mig.json").read_text(encoding="utf-8")) == spec
    with pytest.raises(EngineError, match="named safely"):
        cdi.specification([part(1), part(3)], found, capabilities=known)
    with pytest.raises(EngineError, match="named safely"):
        cdi.specification([part(1), part(1)], found, capabilities=known)
    assert cdi.mig_capabilities(tmp_path / "none") == {}


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("cdi-*.json")), ids=lambda path: path.stem)
def test_no_golden_file_has_more_than_computing_needs(golden):
    text = golden.read_text(encoding="utf-8")
    for surplus in ("modeset", "uvm-tools", "/dev/dri", "persistenced", "mps", "hooks", "env", "nvidia-smi", "libGL", "all"):
        assert f'"{surplus}' not in text.replace("/dev/", '"')
    spec = json.loads(text)
    assert all(node["permissions"] == "rw" for device in spec["devices"] for node in device["containerEdits"]["deviceNodes"])
    assert all("ro" in mount["options"] for mount in spec["containerEdits"]["mounts"])
    assert {node["path"] for node in spec["containerEdits"]["deviceNodes"]} == {"/dev/nvidiactl", "/dev/nvidia-uvm"}


def test_the_pool_asks_for_the_names_that_the_specification_has():
    spec = cdi.specification([gpu(ONE, 0)], {})
    (wanted,) = GpuPool(Inventory((gpu(ONE, 0),), 1, "1 GPU"), cdi=True).devices((ONE,))["cdi"]
    assert wanted == f"{spec['kind']}={spec['devices'][0]['name']}"


@pytest.mark.parametrize(
    "gpus",
    [
        [gpu("all", 0)],
        [gpu("0", 0)],
        [gpu("MIG-955ef018-3bd9-5f27-80b3-fa20ee8d19c5", 0)],
        [gpu(f"{ONE}/../x", 0)],
        [gpu(ONE, None)],
        [gpu(ONE, -1)],
        [gpu(ONE, 255 + 1)],
        [gpu(ONE, 1), gpu(TWO, 1)],
    ],
)
def test_a_gpu_that_cannot_be_named_safely_is_refused(gpus):
    with pytest.raises(EngineError, match="named safely"):
        cdi.specification(gpus, {})


def test_a_library_of_another_driver_version_does_not_count(tmp_path):
    libraries(tmp_path / "lib", optional=True)
    with pytest.raises(EngineError) as caught:
        cdi.find_libraries("580.200.01", [tmp_path / "lib"])
    assert caught.value.details["seen"] == "no libcuda.so.580.200.01"


@pytest.mark.parametrize("driver", ["", "../../etc", "580", "580.178.04\n"])
def test_a_driver_version_that_is_none_is_refused(driver):
    with pytest.raises(EngineError, match="driver's version"):
        cdi.find_libraries(driver, [])


def test_it_is_written_whole_and_readable(tmp_path):
    spec = cdi.specification([gpu(ONE, 0)], {})
    for _ in range(2):
        file = cdi.write_specification(spec, tmp_path / "cdi")
    assert json.loads(file.read_text(encoding="utf-8")) == spec
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [entry.name for entry in (tmp_path / "cdi").iterdir()] == ["sealrig.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    file = cdi.write_specification({"a": 1}, tmp_path)
    with pytest.raises(TypeError):
        cdi.write_specification({"a": object()}, tmp_path)
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_without_gpus_an_old_description_goes(tmp_path):
    cdi.write_specification({"a": 1}, tmp_path)
    for _ in range(2):
        assert cdi.prepare([], machine="x86_64", folder=tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_node_describes_its_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(cdi, "find_libraries", lambda driver: {"libcuda.so.1": Path(f"/lib/libcuda.so.{driver}")})
    file = cdi.prepare([gpu(ONE, 0)], machine="x86_64", folder=tmp_path)
    assert f"/lib/libcuda.so.{DRIVER}" in file.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written"):
        cdi.prepare([], machine="x86_64", folder=tmp_path / "file")


def test_an_unknown_processor_is_refused():
    with pytest.raises(EngineError, match="processor"):
        cdi.specification([gpu(ONE, 0)], {}, machine="riscv64")
