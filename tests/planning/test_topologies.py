"""Names of slices, and the arithmetic of bandwidths."""

import math

import numpy as np
import pytest

from t5x_lite import config, gin_files
from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.planning import roofline, topologies


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v5e-256", (16, 16), 256),
        ("v5p-128", (4, 4, 4), 64),  # named after its cores
        ("v4-8", (2, 2, 1), 4),
        ("v6e-1", (1, 1), 1),
        ("2xv5e-256", (16, 16), 512),
        ("v5p:4x4x12", (4, 4, 12), 192),
        ("gpu:h100x8", (8,), 8),
        ("gpu:h200", (1,), 1),
        ("cpu", (1,), 1),
    ],
)
def test_names(name, shape, chips):
    found = topologies.find(name)
    assert (found.shape, found.chips) == (shape, chips)
    assert topologies.find(found.name) == found


@pytest.mark.parametrize(
    "name", ["v5e-255", "v7-8", "gpu:v100x8", "gpu:v5e", "", "0xv5e-4", "h100"]
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(UserError, match=r"Known: v4-\{8,.*v5e-\{1,4,.*gpu:h100xN") as error:
        topologies.find(name)
    assert "\n" not in str(error.value)


def test_a_shape_of_other_dimensions():
    with pytest.raises(UserError, match="3 dimensions"):
        topologies.find("v5p:4x4")


def test_every_slice_is_known_to_libtpu():
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed")
    for chip, shapes in topologies.SLICES.items():
        for shape in shapes:
            place = topologies.find(f"{chip}-{math.prod(shape) * topologies.CHIPS[chip].cores}")
            devices = topologies.abstract_devices(place)
            assert len(devices) == place.chips
            assert {d.device_kind for d in devices} == {place.chip.kind}
    assert len(topologies.abstract_devices(topologies.find("2xv5e-16"))) == 32
    with pytest.raises(UserError, match="doesn't make v5e:3x3"):
        topologies.abstract_devices(topologies.find("v5e:3x3"))


def test_data_lies_across_slices_and_a_split_fsdp_along_each_ones_torus():
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed")
    devices = topologies.abstract_devices(topologies.find("4xv5e-16"))
    mesh = make_mesh(MeshConfig(data=4, fsdp=16, fsdp_split=(4, 4)), devices)
    for number, one in enumerate(mesh.devices):
        assert {d.slice_index for d in one.flat} == {number}
        rows = np.array([d.coords[:2] for d in one[0].flat])  # along one axis of the torus
        assert sorted(len(set(axis)) for axis in rows.T.tolist()) == [1, 4]
    with pytest.raises(UserError, match="on 4 slices: no axis can be divided"):
        make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), devices[::16])


def test_without_libtpu_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 't5x_lite\[plan\]'"):
        topologies.abstract_devices(topologies.find("v5e-4"))


def test_bandwidth_grows_with_the_torus_axes_that_a_group_spans():
    pod = topologies.find("v5e-256")
    row = [(x, 0) for x in range(16)]
    assert roofline.bandwidth(pod, row) == 2 * pod.chip.link  # a ring: both directions
    assert roofline.bandwidth(pod, row[:8]) == pod.chip.link  # half of it is a line
    whole = [(x, y) for x in range(16) for y in range(16)]
    assert roofline.bandwidth(pod, whole) == 4 * pod.chip.link
    small = topologies.find("v5e-16")
    assert roofline.bandwidth(small, [(x, 0) for x in range(4)]) == small.chip.link


def test_between_slices_the_network_counts():
    place = topologies.find("2xv5e-16")
    places = [(x, y) for x in range(4) for y in range(4)] * 2
    row = {"kind": "all-reduce", "bytes": 2e9 * 31 / 32}
    one = roofline.collective_seconds(row, place, places[:16], [0] * 16)
    two = roofline.collective_seconds(row, place, places, [0] * 16 + [1] * 16)
    # 1 GB a chip: after the slice's own reduction each chip sends 1/16 of it to its peer.
    across = 1e9 / 16 / place.chip.network
    assert two > across and two - across == pytest.approx(one, rel=0.1)


MESHES = [n for n in gin_files.gin_files_under(gin_files.shipped_gin_configs()) if "meshes/" in n]


@pytest.mark.parametrize("name", MESHES)
def test_shipped_meshes_are_the_slices_they_are_named_after(name):
    place = topologies.find(name.removeprefix("meshes/").removesuffix(".gin").replace("_", "-"))
    with config.fresh():
        config.parse([name], ["train.mesh = @MeshConfig()"])
        mesh = config.evaluate("train.mesh")
    assert mesh.fsdp_split == place.shape
    assert math.prod(mesh.sizes(place.chips)) == place.chips


def test_three_bounds_of_a_step():
    place = topologies.find("v5e-4")
    chip = place.chip
    rows = [{"bytes": 1.0, "overlapped": 0.25, "seconds": 4.0}]
    given = dict(
        topology=place, executed_flops=3 * chip.flops, model_flops=4 * chip.flops,
        hbm_bytes=2 * chip.hbm_bandwidth, collectives=rows, tokens=1000,
    )  # fmt: skip
    times = roofline.estimate(**given, busy=3.5)
    assert times["overlapped"] == pytest.approx(4.0)
    assert times["not_overlapped"] == pytest.approx(9.0)
    assert times["as_compiled"] == pytest.approx(3.5 + 3.0)  # three quarters wait
    assert times["mfu"] == pytest.approx(1 / 6.5)
    assert times["tokens_per_second"] == pytest.approx(1000 / 6.5)
    # What goes on behind other instructions still has to come through the memory.
    assert roofline.estimate(**given, busy=1.5)["as_compiled"] == pytest.approx(2.0 + 3.0)


def test_what_a_run_costs():
    assert roofline.budget(3.6, 1000, 256, 1.2) == {
        "days": pytest.approx(1 / 24),
        "chip_hours": pytest.approx(256),
        "cost": pytest.approx(307.2),
    }  # fmt: skip
    assert roofline.budget(1, 1, 1, None)["cost"] is None
