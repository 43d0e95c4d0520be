"""The table of public calls in numba's simulator: a GPU gives what the CPU gives, or an error before any work."""

from __future__ import annotations

import os
import sys

import fake_libraries
import numpy as np
import pytest
from fake_libraries import Tensor, cupy_array
from public_calls import CALLS, SENT, TORCH, Library, flat, refused, same, short, wanted, with_gradient
from simulator import in_simulator, simulated
from test_cuda_places import ByDLPack, ByInterface

import numconv

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # of NumPy's whole numbers

if simulated:
    from numconv.cuda import driver


class Sent(Library):
    """NumPy's arrays, which go to the GPU and back."""

    name = SENT


class OfCupy(Library):
    """CuPy's, by the stand-in for it."""

    name = "cupy"

    def __call__(self, array):
        return cupy_array(np.array(array))

    def fetch(self, array):
        return np.array(getattr(array, "numbers", array))  # its memory goes with it


class OfTorch(OfCupy):
    """torch's, likewise."""

    name = "torch"

    def __call__(self, array):
        return Tensor(np.array(array))


class OfOthers(Library):
    """Arrays that have nothing but an interface of their own; results are then the simulator's own arrays."""

    name = "others"

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, array):
        return self.kind(np.array(array))

    def laid(self, base, view):
        return self.kind(view(np.array(base)))

    def fetch(self, array):
        return np.array(getattr(array, "numbers", array))  # its memory goes with it


LIBRARIES = {
    "sent": Sent(), "cupy": OfCupy(), "torch": OfTorch(), "interface": OfOthers(ByInterface),
    "dlpack": OfOthers(ByDLPack),
}  # fmt: skip


class OnTheHost(Library):
    """torch's tensors on the CPU, which go to the GPU and back."""

    name = SENT

    def __call__(self, array):
        return sys.modules["torch"].from_numpy(np.array(array))

    def fetch(self, array):
        return array.numpy()


@pytest.mark.parametrize("name", sorted(TORCH))
def test_what_torch_differentiates_goes_there_and_back(name):
    """The same values and gradients as on the CPU."""
    pytest.importorskip("torch")
    from numconv.interop import torch as room

    want = flat(with_gradient(room, name, OnTheHost()), OnTheHost().fetch)
    with numconv.use_device("cuda"):
        got = flat(with_gradient(room, name, OnTheHost()), OnTheHost().fetch)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def rows_of(name):
    """CuPy's arrays go through every function and every feature of ``conv``, the others through a part of that each;
    through all of the table where NUMCONV_GPU_TABLE is "all".
    """
    if os.environ.get("NUMCONV_GPU_TABLE") == "all":
        return CALLS if name == "cupy" else short(CALLS)
    some = [call for call in short(CALLS) if call.function != "ConvPlan.norm"]  # which takes a hundred products
    if name == "cupy":
        return [call for call in CALLS if call in some or call.function == "conv"]
    return some[list(LIBRARIES).index(name) :: len(LIBRARIES) - 1]


RUNS = [(name, call) for name in LIBRARIES for call in rows_of(name) if LIBRARIES[name].name not in call.without]

#: What the device has to be asked for before it is known that an argument is wrong.
ASKS = {"csr_matvec", "csr_rmatvec", "ConvPlan.refill"}


@pytest.mark.parametrize(("name", "call"), RUNS, ids=[f"{name}-{call}" for name, call in RUNS])
def test_a_gpu_gives_what_the_cpu_gives(name, call, monkeypatch):
    """Or refuses it in the words that the table says, before anything is launched."""
    fake_libraries.install(monkeypatch, [])
    library, launched, launch = LIBRARIES[name], [], driver.Simulator.launch
    monkeypatch.setattr(driver.Simulator, "launch", lambda *a: (launched.append(a[2].__name__), launch(*a)))
    with numconv.use_device("cuda"):
        if refused(call, library):
            assert not launched or call.function in ASKS, launched
        else:
            same(call, flat(call.run(library), library.fetch), wanted(call))
