"""Which device computes, found out from fakes: objects that say where they live and have no memory to look at."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from standin import Machine, needs_a_standin

import numconv
from numconv import dispatch, select
from numconv.cuda import _jit
from numconv.geometry import conv_geometry


def fake(library, **attributes):
    """An instance of a class of some library with these attributes; touching its memory is an error."""

    def forbidden(self, *_, **__):
        raise AssertionError("the dispatcher must not look at memory")

    members = {"__module__": library, "__dlpack__": forbidden, **attributes}
    return type("Array", (), members)()


def on_gpu(library="cupy", device=0):
    return fake(library, __dlpack_device__=lambda self: (2, device))


class Device:
    """torch's device, as far as it matters."""

    def __init__(self, kind, index=None):
        self.type, self.index = kind, index

    def __str__(self):
        return self.type if self.index is None else f"{self.type}:{self.index}"


def tensor(kind, index=None):
    return fake("torch", detach=lambda self: self, device=Device(kind, index))


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(_jit, "missing", lambda: "nothing here computes")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros(3), "numpy"),
        ([1, 2], ""),
        (2.5, ""),
        (np.float32(1), "numpy"),
        (on_gpu(), "cupy on cuda:0"),
        (on_gpu("jax._src.array", 3), "jax on cuda:3"),
        (fake("cupy", __dlpack_device__=lambda self: (13, 0)), "cupy on cuda:0"),
        (fake("lib", __dlpack_device__=lambda self: (1, 0)), "numpy"),
        (fake("lib", __cuda_array_interface__={"shape": (3,), "data": (0, False)}), "lib on cuda:0"),
        (tensor("cpu"), "torch on cpu"),
        (tensor("cuda", 1), "torch on cuda:1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_whose_array_this_is(array, kind):
    assert dispatch.kind_of("x", array) == kind


@pytest.mark.parametrize("array", [tensor("mps", 0), tensor("meta"), fake("lib", __dlpack_device__=lambda _: (10, 0))])
def test_other_devices_are_refused_by_name(array):
    with pytest.raises(TypeError, match=r"^x lives on"):
        numconv.convolve(array, [1.0])


def test_mixtures_name_every_array():
    with pytest.raises(TypeError, match=r"x: cupy on cuda:0, w: numpy, bias: torch on cuda:0"):
        numconv.conv(on_gpu(), np.ones((1, 1, 3)), tensor("cuda", 0))
    with pytest.raises(TypeError, match=r"x: torch on cuda:0, w: torch on cuda:1"):
        numconv.convolve(tensor("cuda", 0), tensor("cuda", 1))
    with pytest.raises(TypeError, match=r"x: numpy, w: torch on cpu"):
        numconv.convolve(np.ones(3), tensor("cpu"))


def test_an_array_on_a_gpu_needs_one(without_gpu):
    with pytest.raises(RuntimeError, match=r"^x lives on a GPU \(cupy on cuda:0\).*nothing here computes"):
        numconv.convolve(on_gpu(), on_gpu())


def test_asking_for_a_gpu_needs_one(without_gpu, monkeypatch):
    message = "'cuda', but no GPU is usable: nothing here computes"
    with pytest.raises(RuntimeError, match=message), numconv.use_device("cuda"):
        pass
    with pytest.raises(RuntimeError, match=message):
        numconv.plan_conv((1, 1, 4), (1, 1, 2), device="cuda")
    monkeypatch.setenv("NUMCONV_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="NUMCONV_DEVICE is " + message):
        numconv.convolve([1.0], [1.0])
    assert [(d.name, d.usable, d.reason) for d in numconv.devices()][1] == ("cuda", False, "nothing here computes")


def test_the_call_goes_before_the_block_and_the_block_before_the_environment(monkeypatch):
    monkeypatch.setattr(_jit, "missing", lambda: "")
    monkeypatch.setenv("NUMCONV_DEVICE", "cuda")
    assert dispatch.choose_device() == "cuda"
    with numconv.use_device("cpu"):
        assert dispatch.choose_device() == "cpu"
        assert dispatch.choose_device("cuda") == "cuda"
    monkeypatch.setenv("NUMCONV_DEVICE", "gpu")
    with pytest.raises(ValueError, match="NUMCONV_DEVICE must be one of 'auto', 'cpu', 'cuda', got 'gpu'"):
        dispatch.choose_device()


def test_auto_takes_a_gpu_where_the_transfers_pay(monkeypatch):
    large = conv_geometry((32, 256, 56, 56), (256, 256, 3, 3), padding=1)
    small = conv_geometry((1, 3, 32, 32), (8, 3, 3, 3))
    thin = conv_geometry((1, 1, 4096, 4096), (1, 1, 3, 3))  # all of its time would go over the bus
    dtype = np.dtype(np.float32)
    monkeypatch.setattr(dispatch, "has_gpu", lambda: True)
    assert [select.device_for(g, dtype, "auto") for g in (large, small, thin)] == ["cuda", "cpu", "cpu"]
    assert select.device_for(large, dtype, "winograd") == "cpu"
    monkeypatch.setattr(dispatch, "has_gpu", lambda: False)
    assert select.device_for(large, dtype, "auto") == "cpu"


def test_the_simulator_is_never_chosen(monkeypatch):
    monkeypatch.setattr(_jit, "missing", lambda: "")
    monkeypatch.setattr(_jit, "SIMULATED", True)
    assert not dispatch.has_gpu()


def test_algorithms_of_a_gpu():
    g, dtype = conv_geometry((8, 64, 56, 56), (64, 64, 3, 3)), np.dtype(np.float32)
    assert select.choose("auto", g, dtype, "cuda") == select.Choice("implicit", "implicit", "implicit")
    depthwise = conv_geometry((8, 64, 56, 56), (64, 1, 3, 3), groups=64)
    assert select.choose("auto", depthwise, dtype, "cuda").forward == "direct"
    with pytest.raises(ValueError, match="there is no cuda kernel of it"):
        select.choose("winograd", g, dtype, "cuda")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[CUresult.CUDA_ERROR_OUT_OF_MEMORY] on cuMemAlloc", MemoryError, "no memory left"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", MemoryError, "no memory left"),
        ("CUDA initialized before forking", RuntimeError, "'spawn'"),
        ("Failure finding libnvrtc.so.13", RuntimeError, "cannot be compiled here.*numconv-jit"),
        ("libNVVM cannot be found", RuntimeError, "cannot be compiled here.*numconv-jit"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", RuntimeError, "older than the compiler"),
    ],
)
def test_errors_of_the_driver_say_what_helps(text, kind, message):
    error = _jit.explained(Exception(text))
    assert isinstance(error, kind)
    with pytest.raises(kind, match=message):
        raise error


def test_other_errors_stay_as_they_are():
    error = KeyError("x")
    assert _jit.explained(error) is error


def test_pinned_memory_is_the_hosts():
    """CUDA's host memory (DLPack's device type 3) is read where it is: on the CPU."""
    numbers = np.arange(6.0)

    class Pinned:
        def __dlpack_device__(self):
            return 3, 0

        def __dlpack__(self, **_):
            capsule = numbers.__dlpack__()
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
            tensor = pointer(capsule, b"dltensor")
            ctypes.c_int32.from_address(tensor + ctypes.sizeof(ctypes.c_void_p)).value = 3  # device.device_type
            return capsule

    np.testing.assert_array_equal(numconv.convolve(Pinned(), [1.0, 2.0]), np.convolve(numbers, [1, 2]))


# what is missing ----------------------------------------------------------------------------------------------------

needs_numba_cuda = pytest.mark.skipif(
    _jit.cuda is None or _jit.SIMULATED, reason="numba-cuda is not installed: pip install '.[cuda-test]'"
)


class Gpus:
    """A driver's list of GPUs, or what it raises instead."""

    def __init__(self, count=1, error=None):
        self.count, self.error = count, error

    def __len__(self):
        if self.error:
            raise self.error
        return self.count


@pytest.fixture
def driver(monkeypatch):
    """A machine with one GPU, driver and compiler of CUDA 13, of which a test takes something away."""
    from numba.cuda.cudadrv import driver, nvvm, runtime

    monkeypatch.setattr(_jit, "_asked", {})
    monkeypatch.setattr(runtime, "get_version", lambda: (13, 0))
    monkeypatch.setattr(nvvm, "NVVM", lambda: None)
    monkeypatch.setattr(driver, "driver", SimpleNamespace(get_version=lambda: (13, 1)))

    def machine(gpus=None, version=None, nvvm_error=None, nvrtc_error=None):
        _jit._missing.cache_clear()
        monkeypatch.setattr(_jit.cuda, "gpus", Gpus() if gpus is None else gpus)
        if version:
            monkeypatch.setattr(driver, "driver", SimpleNamespace(get_version=lambda: version))
        if nvvm_error:
            monkeypatch.setattr(nvvm, "NVVM", lambda: exec("raise error", {"error": nvvm_error}))
        if nvrtc_error:
            monkeypatch.setattr(runtime, "get_version", lambda: exec("raise error", {"error": nvrtc_error}))

    yield machine
    _jit._missing.cache_clear()


@needs_numba_cuda
def test_a_whole_machine_lacks_nothing(driver):
    driver()
    assert _jit.missing() == ""
    driver(version=(13, 0))
    assert _jit.missing() == ""


@needs_numba_cuda
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("driver", "no CUDA driver can be used: no driver here; install or update NVIDIA's driver"),
        ("gpus", "the CUDA driver finds no GPU"),
        ("nvvm", r"libnvvm.so.4, a part of NVIDIA's compiler, cannot be loaded: pip install 'numconv-jit\[cuda13\]' or "
                 r"'nvidia-nvvm==13.\*', or let CUDA_HOME .*\(libNVVM is not available\)"),
        ("nvvm of 12", r"libnvvm.so.4, .*'numconv-jit\[cuda12\]' or 'nvidia-cuda-nvcc-cu12==12.\*'"),
        ("nvrtc", r"libnvrtc.so, .*'nvidia-cuda-nvrtc==13.\*'"),
        ("old", r"the driver supports CUDA 12.4 and the compiler is that of CUDA 13.0: .*numconv-jit\[cuda12\]"),
    ],
)
def test_devices_say_what_is_missing(driver, capsys, lost, message):
    from numba.cuda.cudadrv.error import CudaSupportError, NvvmSupportError

    driver(**{
        "driver": {"gpus": Gpus(error=CudaSupportError("no driver here"))},
        "gpus": {"gpus": Gpus(0)},
        "nvvm": {"nvvm_error": NvvmSupportError("libNVVM is not available")},
        "nvvm of 12": {"version": (12, 8), "nvvm_error": NvvmSupportError("libNVVM is not available")},
        "nvrtc": {"nvrtc_error": RuntimeError("no libnvrtc")},
        "old": {"version": (12, 4)},
    }[lost])  # fmt: skip
    cuda = numconv.devices()[1]
    assert not cuda.usable
    assert re.fullmatch(message + ".*", cuda.reason), cuda.reason
    with pytest.raises(RuntimeError, match=message), numconv.use_device("cuda"):
        pass
    with pytest.raises(RuntimeError, match=rf"^x lives on a GPU \(cupy on cuda:0\).*{message}"):
        numconv.convolve(on_gpu(), on_gpu())
    from numconv.cli import main

    main(["info"])
    assert re.search(rf"device cuda +NVIDIA GPUs, not usable: {message}", capsys.readouterr().out)


#: Where a machine may have NVIDIA's compiler: the environment variable that says so, and the place from there.
PLACES = [
    *((variable, place) for variable in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX") for place in (
        "lib64", "lib", "nvvm/lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")),
    ("", "usr/local/cuda/lib64"), ("", "usr/local/cuda/nvvm/lib64"), ("", "usr/local/cuda-13.0/nvvm/lib64"),
    ("", "opt/cuda/nvvm/lib64"),  # of the system
    ("wheels", "nvidia/cu13/lib"), ("wheels", "nvidia/cu13/nvvm/lib64"), ("wheels", "nvidia/cuda_nvcc/nvvm/lib64"),
    ("wheels", "nvidia/cuda_nvrtc/lib"),  # those that torch comes with
    ("prefix", "lib"),  # conda's environment, if it is not activated
]  # fmt: skip


@needs_numba_cuda
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries are looked for as Linux has them")
@pytest.mark.parametrize("part", [0, 1], ids=["nvvm", "nvrtc"])
@pytest.mark.parametrize(("variable", "place"), PLACES, ids=["/".join(filter(None, pair)) for pair in PLACES])
def test_a_compiler_is_found_where_machines_have_it(driver, monkeypatch, tmp_path, variable, place, part):
    """numba-cuda looks in fewer places, and takes what is loaded."""
    driver()
    file = _jit.compilers()[part].file
    library = tmp_path / place / (f"{file}.13" if part else file)
    library.parent.mkdir(parents=True)
    library.touch()
    loaded = []

    def ask():
        if str(library) not in loaded:
            raise RuntimeError("not found")
        return 13, 0

    whole = _jit.compilers()
    monkeypatch.setattr(_jit, "compilers", lambda: [p._replace(ask=ask) if p.file == file else p for p in whole])
    monkeypatch.setattr(_jit.ctypes, "CDLL", loaded.append)
    toolkits = [str(tmp_path / pattern).lstrip("/") for pattern in _jit.TOOLKITS]
    monkeypatch.setattr(_jit, "TOOLKITS", [] if variable else toolkits)
    monkeypatch.setattr(_jit.sys, "prefix", str(tmp_path if variable == "prefix" else tmp_path / "nowhere"))
    wheels = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(_jit, "find_spec", lambda name: wheels if variable == "wheels" else None)
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.setenv(name, str(tmp_path) if name == variable else "")
    assert _jit.missing() == ""
    assert loaded[-1] == str(library)


# machines of which something is hidden, over the stand-in for the driver ----------------------------------------------

#: What is hidden of NVIDIA's libraries, what the stand-in says, and the reason that ``devices()`` gives.
MACHINES: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "whole": ((), {}, ""),
    "without libNVVM": (("libnvvm",), {}, r"libnvvm.so.4, a part of NVIDIA's compiler, cannot be loaded: pip install "
                        r"'numconv-jit\[cuda13\]' or 'nvidia-nvvm==13.\*'"),
    "without NVRTC": (("libnvrtc",), {}, r"libnvrtc.so, .* pip install .*'nvidia-cuda-nvrtc==13.\*'"),
    "without nvJitLink": (("libnvJitLink",), {}, ""),  # the driver has a linker of its own
    "without any of them": (("libnvvm", "libnvrtc", "libnvJitLink"), {}, r"libnvvm.so.4, .*'numconv-jit\[cuda13\]'"),
    "an old driver": ((), {"NUMCONV_STANDIN_VERSION": "12040"}, r"the driver supports CUDA 12.4 and the compiler is "
                      r"that of CUDA 13.0: update the driver, or pip install 'numconv-jit\[cuda12\]'"),
    "an old driver, without libNVVM": (("libnvvm",), {"NUMCONV_STANDIN_VERSION": "12040"},
                                       r"libnvvm.so.4, .*'numconv-jit\[cuda12\]' or 'nvidia-cuda-nvcc-cu12==12.\*'"),
    "a driver that does not start": ((), {"NUMCONV_STANDIN_ERROR": "999"}, "no CUDA driver can be used: .*driver"),
    "no GPU": ((), {"NUMCONV_STANDIN_GPUS": "0"}, "the CUDA driver finds no GPU"),
    "no driver": (("libcuda.so",), {}, "no CUDA driver can be used: .*; install or update NVIDIA's driver"),
}  # fmt: skip

SAY = "import numconv; d = numconv.devices()[1]; print(d.usable, d.reason)"


@needs_numba_cuda
@needs_a_standin
@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_says_what_it_lacks(tmp_path, machine):
    hidden, told, reason = MACHINES[machine]
    done = Machine(tmp_path, hidden, **told).python("-c", SAY)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(f"False {reason}.*" if reason else "True ", done.stdout.rstrip("\n")), done.stdout


@needs_numba_cuda
@needs_a_standin
@pytest.mark.parametrize(("variable", "place"), [("CUDA_HOME", "lib64"), ("CONDA_PREFIX", "lib")])
def test_a_hidden_library_is_found_by_the_environment(tmp_path, variable, place):
    """The real one: loaded from where it is found, it compiles a kernel."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    folder = tmp_path / "home" / place
    folder.mkdir(parents=True)
    (folder / "libnvvm.so.4").symlink_to(load_nvidia_dynamic_lib("nvvm").abs_path)
    machine = Machine(tmp_path, ("libnvvm",))
    assert "libnvvm.so.4" in machine.python("-c", SAY).stdout
    work = "with numconv.use_device('cuda'): print(numconv.convolve([1.0, 2.0], [1.0, 1.0]).shape)"
    done = machine.python("-c", f"{SAY}\n{work}", **{variable: str(tmp_path / "home")})
    assert done.stdout == "True \n(3,)\n", done.stdout + done.stderr[-2000:]


@needs_numba_cuda
@needs_a_standin
def test_the_tests_for_a_gpu_fail_where_one_cannot_be_used(tmp_path):
    """``pytest -m gpu`` on a machine that has a GPU, as NUMCONV_GPU says here, and lacks a library."""
    machine = Machine(tmp_path, ("libnvvm",), NUMCONV_GPU="1")
    command = ["-m", "pytest", "-q", "-p", "no:xdist", str(Path(__file__).with_name("test_gpu.py")), "-k", "fork"]
    done = machine.python(*command, "-m", "gpu")
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "there is a GPU, but no GPU can be used: libnvvm.so.4, a part of NVIDIA's compiler" in done.stdout
    for chosen, told in (([], {}), (["-m", "gpu"], {"NUMCONV_GPU": "0"})):  # all tests are asked for; no GPU is there
        done = machine.python(*command, *chosen, **told)
        assert done.returncode == 0 and "1 skipped" in done.stdout, done.stdout[-2000:]


@needs_numba_cuda
def test_a_fork_after_the_driver_started_is_told(driver):
    from numba.cuda.cudadrv.error import CudaSupportError

    driver()
    assert _jit._missing(1) == ""
    assert "before this process was forked" in _jit._missing(2)
    assert "'spawn'" in _jit._missing(2)
    driver(Gpus(error=CudaSupportError("none")))
    _jit._asked.clear()
    assert "no CUDA driver" in _jit._missing(1)
    driver()
    assert _jit._missing(2) == ""  # a driver that did not start hinders no fork


@pytest.mark.skipif(_jit.cuda is not None, reason="numba-cuda is installed")
def test_without_numba_cuda_its_extra_is_named():
    assert _jit.missing().startswith("numba-cuda is not installed: pip install 'numconv-jit[cuda12]'")


def test_no_driver_is_called_before_an_array_or_a_wish():
    """Importing every public name and convolving asks for no GPU, so that a process may still fork."""
    code = (
        "import numconv, os, sys\n"
        "from numconv.cuda import places, implicit, direct, kernel2row, csr, adjoint\n"
        "from numconv.cuda import _jit\n"
        "numconv.convolve([1.0, 2.0], [1.0])\n"
        "assert _jit._missing.cache_info().currsize == 0\n"
        "assert os.name == 'nt' or os.fork() == 0 or os.wait()[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "NUMCONV_DEVICE": "auto"})
