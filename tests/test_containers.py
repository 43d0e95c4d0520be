"""What an array means beside its numbers is never lost in silence: it is refused, with a word on what to do."""

import sys

import numpy as np
import pytest
import scipy.sparse
from test_inputs import CALLS, arrays_for, every_argument

import numconv as nc

OF_READ = {which: call for which, call in CALLS.items() if "v" not in call.shapes}


class Container:
    """Something around an array that NumPy reads without a question."""

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers)
        self.shape, self.dtype = self.numbers.shape, self.numbers.dtype

    def __array__(self, dtype=None, copy=None):
        return self.numbers

    def __getitem__(self, key):
        return self.numbers[key]


def of(module, name="Thing", base=Container, **members):
    """A container as the library ``module`` has it."""
    return type(name, (base,), {"__module__": module, **members})


def ufunc(self, *_, **__):
    raise AssertionError("nobody computes with it")


#: Stand-ins for libraries that need not be installed: what wraps an array, and what the refusal must say.
FAKES = {
    "DataArray": (of("xarray.core.dataarray", "DataArray", chunks=None), r"DataArray of xarray.*{x}\.data"),
    "Variable": (of("xarray.core.variable", "Variable", dims=("x",)), r"Variable of xarray.*labels.*{x}\.data"),
    "Series": (of("pandas.core.series", "Series", mask=ufunc), r"Series of pandas.*index.*{x}\.to_numpy\(\)"),
    "GeoSeries": (of("geopandas", base=of("pandas.core.series", "Series")), r"index.*{x}\.to_numpy\(\)"),
    "DataFrame": (of("polars.dataframe.frame", "DataFrame"), r"DataFrame of polars.*{x}\.to_numpy\(\)"),
    "Array": (of("pyarrow.lib", "Int64Array"), r"Int64Array of pyarrow.*gaps.*{x}\.to_numpy\(\)"),
    "Variable of a file": (of("netCDF4._netCDF4", "Variable", units="m"), r"Variable of netCDF4.*{x}\[\.\.\.\]"),
    "Quantity of pint": (of("pint", "Quantity", units="metre", magnitude=1), r"unit \(metre\).*{x}\.magnitude"),
    "Quantity of quantities": (of("quantities", "Quantity", units="m", magnitude=1), r"unit \(m\).*{x}\.magnitude"),
    "unyt_array": (of("unyt.array", "unyt_array", units="cm", value=1), r"unit \(cm\).*{x}\.value"),
    "COO": (of("sparse.numba_backend", "COO", nnz=1, todense=ufunc), r"COO of sparse, a sparse.*{x}\.todense\(\)"),
    "Tensor": (of("mygrad", "Tensor", __array_ufunc__=ufunc), r"of mygrad.*__array_ufunc__.*numpy\.asarray\({x}\)"),
    "ArrayBox": (of("autograd.numpy.numpy_boxes", "ArrayBox"), r"derivative.*numconv\.interop\.autograd"),
    "masked": (of("somebody", mask=np.array([True])), r"mask would be lost.*{x}\.filled\(value\)"),
}  # fmt: skip


@pytest.mark.parametrize(("fake", "says"), FAKES.values(), ids=FAKES)
@every_argument
def test_containers_are_refused_by_name(call, name, fake, says):
    arrays = arrays_for(call)
    arrays[name] = fake(arrays[name])
    if "v" in call.shapes:
        name = "w"
    with pytest.raises(TypeError, match=rf"^{name} is a .*{says.replace('{x}', name)}"):
        call.run(**arrays)


@pytest.mark.parametrize("call", OF_READ.values(), ids=OF_READ)
def test_quantities_of_astropy_are_refused(call):
    units = pytest.importorskip("astropy.units")
    arrays = arrays_for(call)
    name = next(iter(arrays))
    for unit in (units.m, units.dimensionless_unscaled):
        with pytest.raises(TypeError, match=rf"^{name} is a Quantity of astropy, whose unit .*{name}\.value"):
            call.run(**{**arrays, name: arrays[name] * unit})


def test_the_samples():
    units = pytest.importorskip("astropy.units")
    x = np.array([1.0, 2, 3]) * units.m
    for call in (
        lambda: nc.convolve(x, [1, 2]), lambda: nc.convolve([1, 2], x, "same"), lambda: nc.convolve([*x], [1, 2]),
        lambda: nc.normalized_convolve(x, [1, 2]), lambda: nc.plan_convolve((3,), (2,), dtype=float).forward(x, [1, 2]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"whose unit \(m\) would be lost"):
            call()
    with pytest.raises(TypeError, match=r"^fill_value is a Quantity"):
        nc.convolve([1.0], [1.0], fill_value=2 * units.m)
    with pytest.raises(TypeError, match=r"^out is a Quantity"):
        nc.convolve([1.0], [1.0], out=np.zeros(1) * units.m)
    A = nc.plan_convolve((3,), (2,), dtype=float).linear_operator([1, 2])
    with pytest.raises(TypeError, match=r"^x is a Quantity"):
        A.matvec(x)  # SciPy reads what stands behind @
    averages = nc.normalized_operator([False, False, True], [1.0, 2.0])
    with pytest.raises(TypeError, match=r"^x is a Quantity"):
        averages.matvec(x)


def test_what_else_astropy_has():
    table, masked = pytest.importorskip("astropy.table"), pytest.importorskip("astropy.utils.masked")
    column = table.Column([1.0, 2, 3])
    assert nc.convolve(column, [1, 1], "valid").tolist() == [3, 5]  # it has a name, and that is all
    with pytest.raises(TypeError, match=r"^x is a Column of astropy, whose unit \(m\)"):
        nc.convolve(table.Column([1.0, 2, 3], unit="m"), [1, 1])
    for x in (masked.Masked(np.arange(2.0), mask=[True, False]), table.MaskedColumn([1.0, 2], mask=[True, False])):
        with pytest.raises(TypeError, match=r"^x is a .*mask would be lost; fill it first: x\.filled"):
            nc.convolve(x, [1, 1])


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, scipy.sparse.dok_array])
def test_sparse_arrays_are_no_dense_ones(kind):
    x = kind(np.eye(4))
    for call in (
        lambda: nc.convolve(x, [[1.0]]), lambda: nc.im2col(x, 2), lambda: nc.kernel2row(x, (5, 5)),
        lambda: nc.plan_convolve((4, 4), (2, 2), max_bytes=10**6).forward(x, np.ones((2, 2), "f4")),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"^[xw] is a .* of scipy, a sparse array.*\.toarray\(\)"):
            call()


def test_lists_of_such_things_are_such_things():
    masked = np.ma.masked_array([1.0, 2], [False, True])
    for x in ([masked, [1, 2]], ([[1.0, 2], masked],), [FAKES["Series"][0]([1.0, 2])]):
        with pytest.raises(TypeError, match=r"^x is a .*would be lost"):
            nc.convolve(x, np.ones((1,) * np.ndim(np.zeros((1, 2)))))
    if "dask" in sys.modules or pytest.importorskip("dask"):
        import dask.array as da

        with pytest.raises(TypeError, match=r"^x is a Dask array, not taken here"):
            nc.convolve([da.ones(3), da.ones(3)], np.ones((1, 1)))
    deep = [[[1, 2.5], (3, np.float32(4))], [[True, 6], [7, 8]]]
    assert nc.convolve(deep, [[[1]]], "valid").tolist() == np.asarray(deep, float).tolist()


def test_lazy_labels_are_not_computed():
    da = pytest.importorskip("dask.array")

    def never(block):
        raise AssertionError("it was computed")

    class Labelled(FAKES["DataArray"][0]):
        def __init__(self, data):
            self.data, self.shape, self.dtype = data, data.shape, data.dtype

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.data)

    Labelled.__module__ = "xarray.core.dataarray"
    x = Labelled(da.ones((8, 8), chunks=4).map_blocks(never, dtype=float, meta=np.empty((0, 0))))
    for call in (
        lambda: nc.convolve(x, np.ones((2, 2))), lambda: nc.convolve(x.data, Labelled(x.data)),
        lambda: nc.plan_convolve((8, 8), (2, 2), dtype=float, max_bytes=10**6).forward(x, np.ones((2, 2))),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"^[xw] is a Labelled of xarray, whose labels would be lost"):
            call()


def test_dask_arrays_of_such_things():
    da, units = pytest.importorskip("dask.array"), pytest.importorskip("astropy.units")
    x, w = da.ones(9, chunks=4), np.ones(2)
    with pytest.raises(TypeError, match=r"^x is a masked array"):
        nc.convolve(da.ma.masked_greater(x, 2), w)
    with pytest.raises(TypeError, match=r"^w is a Quantity"):
        nc.convolve(x, w * units.m)
    with pytest.raises(TypeError, match=r"^bias is a masked array"):
        nc.conv(x[None], w[None, None], np.ma.masked_array([1.0], [True]))


def test_a_frame_of_dask_is_told_what_to_do():
    frame = of("dask.dataframe.core", "DataFrame", to_dask_array=ufunc)
    with pytest.raises(TypeError, match=r"^x is a DataFrame of dask.*x\.to_dask_array\(lengths=True\)"):
        nc.im2col(frame(np.ones((4, 4))), 2)


def test_what_has_no_meaning_beside_its_numbers_goes_on(tmp_path):
    class Plain(np.ndarray):
        pass

    x = np.arange(6.0)
    want = nc.convolve(x, [1, 2])
    mapped = np.memmap(tmp_path / "x", float, "w+", shape=6)
    mapped[:] = x
    for same in (x.view(Plain), mapped, x.view(np.recarray), Container(x), of("somebody", units=None)(x), [*x]):
        np.testing.assert_array_equal(nc.convolve(same, [1, 2]), want)


def test_libraries_that_are_here():
    for module, make in {
        "pandas": lambda m: [m.Series([1.0, 2]), m.DataFrame({"a": [1.0, 2]}), m.Index([1.0, 2])],
        "xarray": lambda m: [m.DataArray([1.0, 2]), m.Variable("x", [1.0, 2]), m.Dataset({"a": ("x", [1.0, 2])})],
        "pint": lambda m: [m.UnitRegistry().Quantity([1.0, 2], "m")],
        "sparse": lambda m: [m.COO.from_numpy(np.eye(2))],
        "polars": lambda m: [m.Series([1.0, 2]), m.DataFrame({"a": [1.0, 2]})],
    }.items():
        library = sys.modules.get(module)
        for x in make(library) if library else ():
            with pytest.raises(TypeError, match=r"^x is a "):
                nc.convolve(x, [1, 1])
