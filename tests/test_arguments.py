"""Every argument is honoured or refused: none is read as something else, and none is ignored."""

import numpy as np
import pytest
from conftest import values
from hypothesis import given, settings
from hypothesis import strategies as st

import numconv as nc


@given(
    st.integers(1, 3), st.sampled_from(["same", "same_lower"]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=60)
def test_output_padding_is_honoured_or_refused(d, word, k, stride, dilation, extra):
    x, w = values((2, *(4, 3, 2)[:d])), values((2, 1, *(k,) * d), seed=1)
    if extra >= max(stride, dilation):
        return
    arguments = {"stride": stride, "dilation": dilation, "output_padding": extra}
    y = nc.conv_transpose(x, w, padding=0, **arguments)
    assert y.shape[1:] == tuple((n - 1) * stride + dilation * (k - 1) + extra + 1 for n in x.shape[1:])
    if extra:
        with pytest.raises(ValueError, match=rf"output_padding must be 0 with padding='{word}'.*got {extra}"):
            nc.conv_transpose(x, w, padding=word, **arguments)
        with pytest.raises(ValueError, match="output_padding must be 0"):
            nc.conv_transpose(x, w, padding=word, **arguments | {"output_padding": (0,) * (d - 1) + (extra,)})
    else:
        y = nc.conv_transpose(x, w, padding=word, **arguments)
        assert y.shape[1:] == tuple(n * stride for n in x.shape[1:])


def test_output_padding_of_dask_and_of_the_named_transposes():
    x, w = values((2, 4)), values((2, 1, 3), seed=1)
    with pytest.raises(ValueError, match="output_padding must be 0 with padding='same'"):
        nc.conv_transpose1d(x, w, None, 2, "same", 1)
    da = pytest.importorskip("dask.array")
    with pytest.raises(ValueError, match="output_padding must be 0 with padding='same'"):
        nc.conv_transpose(da.from_array(x), w, stride=2, padding="same", output_padding=1)


@pytest.mark.parametrize("shape", [(), (7,), (7, 6), (2, 7, 6), (3, 2, 7, 6), (3, 2, 5, 4, 6)])
def test_unfold_takes_the_shapes_that_torch_takes(shape):
    torch = pytest.importorskip("torch")
    x = values(shape)
    if len(shape) in (3, 4):
        np.testing.assert_array_equal(nc.unfold(x, 3), torch.nn.functional.unfold(torch.from_numpy(x), 3))
    elif len(shape) == 5:  # where torch stops
        np.testing.assert_array_equal(nc.unfold(x, 3), nc.unfold(x, (3, 3, 3)))
    else:
        with pytest.raises((RuntimeError, IndexError)):
            torch.nn.functional.unfold(torch.as_tensor(x), 3)
        says = r"x must be \(N, C, \*in\) or \(C, \*in\).*x\[None\].*kernel_size=\(3,\)"
        for arguments in ((3,), (3, 1, 1, 2), (3, 1, "same")):
            with pytest.raises(ValueError, match=says):
                nc.unfold(x, *arguments)


def test_unfold_takes_one_axis_where_an_argument_says_so():
    x = values((2, 9))
    want = nc.im2col(x, (3,), stride=2, flip=False)
    assert want.shape == (6, 4)
    for arguments in ({"kernel_size": (3,), "stride": 2}, {"kernel_size": 3, "stride": (2,)}):
        np.testing.assert_array_equal(nc.unfold(x, **arguments), want)
        np.testing.assert_array_equal(nc.unfold(x[None], **arguments), want[None])
    np.testing.assert_array_equal(nc.fold(want, (9,), 3, stride=2), nc.col2im(want, (2, 9), (3,), stride=2, flip=False))


def test_fold_says_how_many_axes_single_ints_stand_for():
    cols = values((2, 9, 18))
    says = r"cols must have shape \(2, 9, 324\).*two spatial axes.*output_size=\(n,\)"
    for arguments in ((20, 3), (20, 3, 1, 0, 1)):
        with pytest.raises(ValueError, match=says):
            nc.fold(cols, *arguments)
    with pytest.raises(ValueError, match=r"prod k = 16.*two spatial axes"):
        nc.fold(cols, 20, 4)
    with pytest.raises(ValueError, match=r"cols must have shape \(2, 9, 12\), got \(2, 9, 18\)$"):
        nc.fold(cols, (20,), (9,))
    assert nc.fold(cols, (26,), 9).shape == (2, 1, 26)


def test_points_are_convolved_with_every_argument_looked_at():
    for x, w in ((3, 4), (2.5, 3), (1 + 2j, 3j), (True, True)):
        for function, want in ((nc.convolve, np.multiply(x, w)), (nc.correlate, np.multiply(x, np.conj(w)))):
            got = function(x, w)
            assert (got.shape, got.dtype, got[()]) == ((), np.result_type(x, w), want)
    out = np.zeros(())
    assert nc.convolve(3, 4, "same", boundary="wrap", stride=2, axes=(), out=out) is out
    assert out == 12
    for name, wrong in {
        "mode": "sme", "dtype": "flaot", "algorithm": "ftt", "boundary": "mirror", "stride": 0, "dilation": 1.5,
        "axes": 0, "fill_value": "x", "out": np.zeros(1),
    }.items():  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=name):
            nc.convolve(3, 4, **{name: wrong})


def test_dask_arrays_are_taken_with_the_arguments_of_others_and_no_more():
    da = pytest.importorskip("dask.array")
    x, w = da.ones((1, 9), chunks=(1, 4)), np.ones((1, 1, 3))
    for function, arrays, wrong in (
        (nc.conv_transpose, (x, w), {"fill_value": 3}), (nc.conv, (x, w), {"paddding": 1}),
        (nc.conv, (x, w), {"plain": True}), (nc.im2col, (x, 3), {"groups": 1}), (nc.convolve, (x, w[0]), {"groups": 1}),
    ):  # fmt: skip
        (name,) = wrong
        with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument '{name}'"):
            function(*arrays, **wrong)
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'"):
            function(*(np.asarray(array) for array in arrays), **wrong)


def test_a_mask_does_not_undo_that_of_a_masked_array():
    x = np.ma.masked_array([1.0, 2, 3, 4], [False, True, False, False])
    got = nc.normalized_convolve(x, [1.0, 1], "valid", mask=[False, False, True, False])
    np.testing.assert_array_equal(got, [1, np.nan, 4])
    np.testing.assert_array_equal(nc.normalized_convolve(x, [1.0, 1], "valid"), [1, 3, 3.5])
