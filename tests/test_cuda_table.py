"""The table of public calls in numba's simulator: what a GPU gives is what the CPU gives, or an error before any work."""

from __future__ import annotations

import fake_libraries
import numpy as np
import pytest
from fake_libraries import Tensor, cupy_array
from public_calls import CALLS, HERE, NO_REVERSED, SENT, Library, flat, public, same, wanted
from simulator import in_simulator, simulated
from test_cuda_places import ByDLPack, ByInterface

import numconv

pytestmark = [in_simulator, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # of NumPy's whole numbers

if simulated:
    from numconv.cuda import driver, places


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


@pytest.fixture(params=LIBRARIES)
def library(request, monkeypatch):
    fake_libraries.install(monkeypatch, [])
    with numconv.use_device("cuda"):
        yield LIBRARIES[request.param]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_gpu_gives_what_the_cpu_gives(library, call, monkeypatch):
    if library.name in call.without:
        pytest.skip("there are no such arrays")
    refusal = call.refusal(library.name)
    if refusal:
        launched, launch = [], driver.Simulator.launch
        monkeypatch.setattr(driver.Simulator, "launch", lambda *a: (launched.append(a[2].__name__), launch(*a)))
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            call.run(library)
        assert str(caught.value).startswith(refusal), caught.value
        return
    same(call, flat(call.run(library), library.fetch), wanted(call))
