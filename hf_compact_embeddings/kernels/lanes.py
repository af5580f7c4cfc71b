"""Sixteen numbers at a time, for compiled loops: what the compiler does not find by itself in loops that gather.

A loop that reads one table at places that another one names, and writes, is no vector code to LLVM, as the three might
overlap. These few operations say it outright. LLVM maps them to what the processor has: one, two or four vector
instructions, or, where it cannot gather, single ones.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_ADDRESSES = ir.VectorType(ir.IntType(64), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_FLOAT_BYTES = 4


class _FloatLanes(types.Type):
    """Sixteen float32 numbers in registers."""

    def __init__(self) -> None:
        super().__init__(name="FloatLanes")


@register_model(_FloatLanes)
class _FloatLanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


_float_lanes = _FloatLanes()


def _repeated(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * LANES))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, lanes: Any) -> Any:
    start = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [index]), lanes.as_pointer())


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _gathered(context: Any, builder: Any, array_type: Any, array: Any, places: Any) -> Any:
    start = builder.ptrtoint(context.make_array(array_type)(context, builder, array).data, ir.IntType(64))
    offsets = builder.mul(builder.zext(places, _ADDRESSES), ir.Constant(_ADDRESSES, [_FLOAT_BYTES] * LANES))
    addresses = builder.add(_repeated(builder, start), offsets)
    pointers = builder.inttoptr(addresses, ir.VectorType(ir.FloatType().as_pointer(), LANES))
    every = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
    alignment, nothing = ir.Constant(ir.IntType(32), _FLOAT_BYTES), ir.Constant(_FLOATS, ir.Undefined)
    return _call(builder, f"llvm.masked.gather.v{LANES}f32.v{LANES}p0", _FLOATS, pointers, alignment, every, nothing)


@intrinsic
def zeros(typing_context):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return sixteen zeros."""
    return _float_lanes(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [0.0] * LANES)


@intrinsic
def window_values(typing_context, words, word, shift, mask, values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the values (float32) of the windows of sixteen rows.

    A window is what `mask` leaves of the 64 bits `words[word]`, `words[word + 1]`, first bit first, without the last
    `shift` ones (0 to 31). `words` (n, 16) is uint32, C-contiguous, as `values`; nothing checks any index here.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        array, word, shift, mask, table = arguments
        rows = []
        for following in (0, 1):
            place = builder.add(word, ir.Constant(word.type, following))
            place = builder.mul(place, ir.Constant(word.type, LANES))
            pointer = _pointer(context, builder, signature.args[0], array, place, _INTS)
            rows.append(builder.load(pointer, align=4))
        shifted = _call(builder, f"llvm.fshr.v{LANES}i32", _INTS, *rows, _repeated(builder, shift))
        windows = builder.and_(shifted, _repeated(builder, mask))
        return _gathered(context, builder, signature.args[4], table, windows)

    return _float_lanes(words, types.int64, types.uint32, types.uint32, values), generate


@intrinsic
def plus_product(typing_context, total, lanes, factor):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return total + lanes · factor, for one float32 factor."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        total, lanes, factor = arguments
        return _call(builder, f"llvm.fmuladd.v{LANES}f32", _FLOATS, lanes, _repeated(builder, factor), total)

    return _float_lanes(_float_lanes, _float_lanes, types.float32), generate


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Read sixteen numbers of a float32 array (n,), C-contiguous, from an index on, which nothing checks here."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return builder.load(_pointer(context, builder, signature.args[0], *arguments, _FLOATS), align=_FLOAT_BYTES)

    return _float_lanes(array, types.int64), generate


@intrinsic
def store(typing_context, array, index, lanes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Write sixteen numbers into a float32 array (n,), C-contiguous, from an index on, which nothing checks here."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], _FLOATS)
        builder.store(arguments[2], pointer, align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(array, types.int64, _float_lanes), generate


@intrinsic
def plus_products(typing_context, total, lanes, other):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return total + lanes · other, number by number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        total, lanes, other = arguments
        return _call(builder, f"llvm.fmuladd.v{LANES}f32", _FLOATS, lanes, other, total)

    return _float_lanes(_float_lanes, _float_lanes, _float_lanes), generate


@intrinsic
def levels(typing_context, codes, index, shift, mask, middle):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return what `mask` leaves of sixteen bytes, shifted down, minus a float32 number that stands for zero.

    `codes` (n,) is uint8, C-contiguous, and read from an index on, which nothing checks here.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        array, index, shift, mask, middle = arguments
        pointer = _pointer(context, builder, signature.args[0], array, index, _BYTES)
        wide = builder.zext(builder.load(pointer, align=1), _INTS)
        found = builder.and_(builder.lshr(wide, _repeated(builder, shift)), _repeated(builder, mask))
        return builder.fsub(builder.sitofp(found, _FLOATS), _repeated(builder, middle))

    return _float_lanes(codes, types.int64, types.uint32, types.uint32, types.float32), generate


@intrinsic
def added_up(typing_context, lanes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Return the sum of sixteen numbers, as float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _FLOATS])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        # In any order: one after the other they would wait for each other.
        return builder.call(function, [ir.Constant(ir.FloatType(), 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(_float_lanes), generate
