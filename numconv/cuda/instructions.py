"""What kernels say in one instruction that numba has no word for: loads and stores of several numbers, addresses that
are taken as they are, and PTX. In the simulator each is the Python that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Any

from ._jit import SIMULATED, at, cuda, helper

#: Whether kernels are not compiled.
PLAIN = cuda is None or SIMULATED


@helper
def load_two(shared, begin, local, to):
    """``local[to : to + 2] = shared[begin : begin + 2]``; float32 that begins at 8 bytes come in one load."""
    for i in range(2):
        local[to + i] = shared[begin + at(i)]


@helper
def load_four(shared, begin, local, to):
    """``local[to : to + 4] = shared[begin : begin + 4]``; float32 that begins at 16 bytes come in one load."""
    for i in range(4):
        local[to + i] = shared[begin + at(i)]


def take_four(source, begin, target, to):
    """``target[to : to + 4] = source[begin : begin + 4]``; where it begins lies at 16 bytes: one load of float32."""
    for i in range(4):
        target[to + i] = source[begin + at(i)]


def put_four(source, begin, target, to):
    """``target[to : to + 4] = source[begin : begin + 4]``; where it goes lies at 16 bytes: one store of float32."""
    for i in range(4):
        target[to + at(i)] = target.dtype.type(source[begin + i])


def _teach_compiler() -> None:
    """The compiler knows where its own arrays begin and moves four numbers at once; of others it has to be told."""
    from llvmlite import ir

    extending: Any = import_module("numba.cuda.extending")
    types: Any = import_module("numba.cuda.types")
    four, index = ir.VectorType(ir.FloatType(), 4), ir.IntType(32)

    def pointer(context, builder, signature, arguments, a):
        array = context.make_array(signature.args[a])(context, builder, arguments[a])
        return builder.gep(array.data, [arguments[a + 1]])

    def take(context, builder, signature, arguments):
        source, goal = (pointer(context, builder, signature, arguments, a) for a in (0, 2))
        numbers = builder.load(builder.bitcast(source, four.as_pointer()), align=16)
        for lane in (ir.Constant(index, i) for i in range(4)):
            builder.store(builder.extract_element(numbers, lane), builder.gep(goal, [lane]))
        return context.get_dummy_value()

    def put(context, builder, signature, arguments):
        source, goal = (pointer(context, builder, signature, arguments, a) for a in (0, 2))
        numbers = ir.Constant(four, ir.Undefined)
        for lane in (ir.Constant(index, i) for i in range(4)):
            numbers = builder.insert_element(numbers, builder.load(builder.gep(source, [lane])), lane)
        builder.store(numbers, builder.bitcast(goal, four.as_pointer()), align=16)
        return context.get_dummy_value()

    def teach(move, in_one):
        @extending.intrinsic
        def at_once(typing, source, begin, target, to):
            return types.void(source, begin, target, to), in_one

        @extending.overload(move)
        def moved(source, begin, target, to):
            if source.dtype == target.dtype == types.float32:
                return lambda source, begin, target, to: at_once(source, begin, target, to)
            return move

    teach(take_four, take)
    teach(put_four, put)


if not PLAIN:
    _teach_compiler()


def _view(array: Any, begin: Any) -> Any:
    return array[begin:]


def _beyond() -> Any:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    @intrinsic
    def beyond(typingctx: Any, array: Any, begin: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            view = context.make_array(array)(context, builder, values[0])
            pointer, number = view.data.type, ir.IntType(64)
            address = builder.ptrtoint(builder.gep(view.data, [values[1]]), number)
            address = builder.asm(ir.FunctionType(number, [number]), "mov.b64 $0, $1;", "=l,l", [address], False)
            view.data = builder.addrspacecast(builder.inttoptr(address, ir.PointerType(pointer.pointee, 1)), pointer)
            return view._getvalue()

        return array(array, begin), codegen

    return beyond


#: ``beyond(array, begin)``: ``array[begin:]``, at an address of global memory that the compiler takes as it is. An
#: index of 32 bits into it is one instruction; to a sum of addresses the compiler would add it in 64 bits each time.
beyond: Any = _view if PLAIN else _beyond()


def instruction(text: str, results: str = "", operands: str = "") -> Callable[[Callable[..., Any]], Any]:
    """A decorator that makes a PTX instruction of what the simulator runs in its place: a function of float32 numbers.

    Registers are "f" of floating point or "r" of bits. Several results are a tuple. But for those with one result,
    instructions stay where they stand in the code: they are for a warp as a whole, or order loads and stores.
    """
    return lambda twin: twin if PLAIN else _intrinsic(text, results, operands, signature(twin))


def _intrinsic(text: str, results: str, operands: str, twin: Signature) -> Any:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    types = cuda.types
    number, several = ir.FloatType(), len(results) > 1
    register = {"f": number, "r": ir.IntType(32)}
    gives = types.UniTuple(types.float32, len(results)) if several else types.float32 if results else types.void
    made: Any = [register[letter] for letter in results]
    made = ir.LiteralStructType(made) if several else made[0] if results else ir.VoidType()
    constraints = ",".join([*(f"={letter}" for letter in results), *operands, *["~{memory}"] * (not results)])

    def typed(context: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            taken = [builder.bitcast(v, register[letter]) for v, letter in zip(values, operands, strict=True)]
            assembly = ir.InlineAsm(
                ir.FunctionType(made, [value.type for value in taken]), text, constraints, side_effect=len(results) != 1
            )
            given = builder.call(assembly, taken)
            if not results:
                return context.get_dummy_value()
            parts = [builder.extract_value(given, i) for i in range(len(results))] if several else [given]
            parts = [builder.bitcast(part, number) for part in parts]
            return context.make_tuple(builder, signature.return_type, parts) if several else parts[0]

        return gives(*[types.float32] * len(operands)), codegen

    first = Parameter("context", Parameter.POSITIONAL_OR_KEYWORD)
    setattr(typed, "__signature__", twin.replace(parameters=[first, *twin.parameters.values()]))  # noqa: B010
    return intrinsic(typed)


@instruction("cp.async.commit_group;")
def commit_copies() -> None:
    """What ``copy_four`` was told so far is a group."""


@instruction("cp.async.wait_group 0;")
def wait_for_copies() -> None:
    """Until all groups are there, for the thread that asked for them."""


def _copied(shared: Any, to: Any, source: Any, begin: Any) -> None:
    shared[to : to + 4] = source[begin : begin + 4]


def _copy_four() -> Any:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    text = "{ .reg .u64 to; cvta.to.shared.u64 to, $0; cp.async.cg.shared.global [to], [$1], 16; }"

    @intrinsic
    def copy_four(typingctx: Any, shared: Any, to: Any, source: Any, begin: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            addresses = []
            for kind, array, index in zip(signature.args[::2], values[::2], values[1::2], strict=True):
                data = context.make_array(kind)(context, builder, array).data
                addresses.append(builder.ptrtoint(builder.gep(data, [index]), ir.IntType(64)))
            shape = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 2)
            builder.call(ir.InlineAsm(shape, text, "l,l,~{memory}", side_effect=True), addresses)
            return context.get_dummy_value()

        return cuda.types.void(shared, cuda.types.uint64, source, cuda.types.uint64), codegen

    return copy_four


#: ``copy_four(shared, to, source, begin)``: ``shared[to : to + 4] = source[begin : begin + 4]`` of float32, both at 16
#: bytes, while the thread goes on: from sm_80 on, by ``cp.async``.
copy_four: Any = _copied if PLAIN else _copy_four()
