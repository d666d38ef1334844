// What arrives from Python: one record per tensor, and every check of an argument. Each check throws
// std::invalid_argument and names the argument.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels.h"

namespace act {

constexpr const char* DTYPES[] = {"float32", "bfloat16", "float16", "float64", "int64", "bool"};
constexpr const char* ACTIVATIONS[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};
constexpr const char* NORM_STYLES[] = {"rms", "rms_float", "rms_one_plus", "layer"};

[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }

// The enumerator whose name is `given`.
template <class Choice, size_t N>
Choice choice(const char* what, std::string_view given, const char* const (&names)[N]) {
    std::string all;
    for (size_t i = 0; i < N; ++i) {
        if (given == names[i]) return static_cast<Choice>(i);
        all += (i ? ", " : "") + std::string(names[i]);
    }
    refuse(std::string(what) + " must be one of " + all + ", got '" + std::string(given) + "'");
}

// What Python passes as a tensor; of no dimensions if it passes None.
struct Tensor {
    void* data = nullptr;
    DType dtype = DType::float32;
    int dimensions = 0;
    int64_t shape[4] = {}, strides[4] = {};

    explicit operator bool() const { return dimensions > 0; }
};

inline std::string describe(const Tensor& x) {
    if (!x) return "None";
    std::string shape, strides;
    for (int i = 0; i < x.dimensions; ++i) {
        shape += (i ? ", " : "") + std::to_string(x.shape[i]);
        strides += (i ? ", " : "") + std::to_string(x.strides[i]);
    }
    return std::string(DTYPES[int(x.dtype)]) + " [" + shape + "] of strides [" + strides + "]";
}

[[noreturn]] inline void refuse(const char* name, const std::string& expected, const Tensor& x) {
    refuse(std::string(name) + " must be " + expected + ", got " + describe(x));
}

// A tensor of two dimensions, or of one, which is one row.
inline Matrix matrix(const char* name, const Tensor& x) {
    if (x.dimensions < 1 || x.dimensions > 2) refuse(name, "a matrix or a vector", x);
    const int last = x.dimensions - 1;
    Matrix m{x.data, 1, x.shape[last], x.shape[last], x.strides[last], x.dtype};
    if (last) m.rows = x.shape[0], m.row_stride = x.strides[0];
    if (m.rows < 1 || m.columns < 1) refuse(name, "of at least one row and one column", x);
    if (m.columns == 1) m.column_stride = 1;
    if (!x.data) refuse(std::string(name) + " is a null pointer");
    return m;
}

// Heads [B, H, L, D] as [B * L, H * D]: the values of a token lie side by side, and tokens are evenly spaced.
inline Matrix heads(const char* name, const Tensor& x) {
    const auto [batch, count, length, width] = x.shape;
    const bool neighbours = (width == 1 || x.strides[3] == 1) && (count == 1 || x.strides[1] == width);
    const bool even = batch == 1 || length == 1 || x.strides[0] == length * x.strides[2];
    if (x.dimensions != 4 || batch < 1 || count < 1 || length < 1 || width < 1 || !neighbours || !even)
        refuse(name, "[B, H, L, D] of neighbouring heads and evenly spaced tokens", x);
    if (!x.data) refuse(std::string(name) + " is a null pointer");
    return {x.data, batch * length, count * width, length > 1 ? x.strides[2] : x.strides[0], 1, x.dtype};
}

// What every kernel but blend_rows takes as an input.
inline Matrix input(const char* name, const Tensor& x) {
    const Matrix m = x.dimensions == 4 ? heads(name, x) : matrix(name, x);
    if (m.dtype > DType::float16) refuse(name, "float32, bfloat16 or float16", x);
    if (m.rows > INT32_MAX || m.column_stride != 1) refuse(name, "of up to 2^31-1 rows and neighbouring columns", x);
    return m;
}

// A tensor of this dtype and shape with neighbouring columns; `contiguous`: with neighbouring rows too.
inline Matrix require(const char* name, const Tensor& x, DType dtype, int64_t rows, int64_t columns,
                      bool contiguous = true) {
    const Matrix m = x.dimensions == 4 ? heads(name, x) : matrix(name, x);
    const bool dense = m.column_stride == 1 && (!contiguous || m.rows == 1 || m.row_stride == m.columns);
    if (m.dtype != dtype || m.rows != rows || m.columns != columns || !dense)
        refuse(name, std::string(contiguous ? "contiguous " : "") + DTYPES[int(dtype)] + " [" + std::to_string(rows) +
                         ", " + std::to_string(columns) + "]",
               x);
    return m;
}

// Another input or a result, of the dtype and shape of an input.
inline Matrix input_like(const char* name, const Tensor& x, const Matrix& model) {
    return require(name, x, model.dtype, model.rows, model.columns, false);
}
inline void* result_like(const char* name, const Tensor& x, const Matrix& model) {
    return require(name, x, model.dtype, model.rows, model.columns).data;
}

// A vector of one value per channel.
inline const void* per_channel(const char* name, const Tensor& vector, const Matrix& x) {
    return require(name, vector, x.dtype, 1, x.columns).data;
}

// A block of moments.
inline Moments moments(const char* name, const Tensor& block, int64_t columns) {
    const Matrix m = require(name, block, DType::float64, STATISTICS, columns, false);
    return {static_cast<double*>(m.data), m.row_stride};
}
inline Moments optional_moments(const char* name, const Tensor& block, int64_t columns) {
    return block ? moments(name, block, columns) : Moments{nullptr, 0};
}

// One byte per row; null counts every row.
inline const uint8_t* mask(const Tensor& mask, int64_t rows) {
    return mask ? static_cast<const uint8_t*>(require("mask", mask, DType::boolean, 1, rows).data) : nullptr;
}

// The moments [7, E, columns] of E segments, and their int64 offsets [E + 1].
inline Segments segments(const Tensor& x, const Tensor& block, const Tensor& offsets) {
    const Matrix rows = input("x", x);
    if (block.dimensions != 3 || block.shape[1] < 1) refuse("moments", "[7, E, columns]", block);
    const Tensor first{block.data, block.dtype, 2, {block.shape[0], block.shape[2]}, {block.strides[0], block.strides[2]}};
    const auto* const places = require("offsets", offsets, DType::int64, 1, block.shape[1] + 1).data;
    return {rows, moments("moments", first, rows.columns), block.strides[1], static_cast<const int64_t*>(places), block.shape[1]};
}

// The moments [3, 7, columns] of a pair, or [5, 7, columns] of one with a swapped output.
inline Pair pair(const Tensor& donor, const Tensor& target, const Tensor& swapped, const Tensor& block) {
    const Matrix x = input("donor", donor);
    Pair op{x, input_like("target", target, x), swapped ? input_like("swapped", swapped, x) : Matrix{}, {}};
    const int blocks = swapped ? 5 : 3;
    if (block.dimensions != 3 || block.shape[0] != blocks) refuse("moments", swapped ? "five blocks" : "three blocks", block);
    const Tensor first{block.data, block.dtype, 2, {block.shape[1], block.shape[2]}, {block.strides[1], block.strides[2]}};
    for (int i = 0; i < blocks; ++i) {
        op.blocks[i] = moments("moments", first, x.columns);
        op.blocks[i].data += i * block.strides[0];
    }
    return op;
}

// `rows` of the target; they are all that a `gathered` donor has, one after the other.
inline Blend blend(const Tensor& target, const Tensor& donor, const Tensor& rows, bool gathered, double strength) {
    const Matrix to = matrix("target", target), from = matrix("donor", donor), chosen = matrix("rows", rows);
    require("rows", rows, DType::int64, 1, chosen.columns);
    if (to.dtype > DType::float16) refuse("target", "float32, bfloat16 or float16", target);
    const int64_t donor_rows = gathered ? chosen.columns : to.rows;
    if (from.dtype != to.dtype || from.rows != donor_rows || from.columns != to.columns)
        refuse("donor", std::string(DTYPES[int(to.dtype)]) + " [" + std::to_string(donor_rows) + ", " +
                            std::to_string(to.columns) + "]", donor);
    return {to, from, static_cast<const int64_t*>(chosen.data), chosen.columns, gathered, strength};
}

inline GatedMlp gated_mlp(const Tensor& gate, const Tensor& up, const Tensor& product, std::string_view activation,
                          const Tensor& gate_moments, const Tensor& up_moments, const Tensor& product_moments) {
    const Matrix x = input("gate", gate);
    return {x,
            input_like("up", up, x),
            result_like("product", product, x),
            choice<Activation>("activation", activation, ACTIVATIONS),
            optional_moments("gate_moments", gate_moments, x.columns),
            optional_moments("up_moments", up_moments, x.columns),
            optional_moments("product_moments", product_moments, x.columns)};
}

// `cos` and `sin` [B or 1, L, R], for heads [B, H, L, D].
inline Rotary rotary(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_out, const Tensor& k_out,
                     const Tensor& q_moments, const Tensor& k_moments, const Tensor& v_moments, const Tensor& cos,
                     const Tensor& sin, bool interleaved, bool round_once) {
    const auto of = [&](const char* name, const Tensor& x) {
        if (x.dimensions != 4 || x.dtype != q.dtype || x.shape[0] != q.shape[0] || x.shape[2] != q.shape[2])
            refuse(name, "heads [B, H, L, D] of the dtype, B and L of q", x);
        return input(name, x);
    };
    const Matrix q_rows = of("q", q), k_rows = of("k", k), v_rows = v ? of("v", v) : Matrix{};
    const int64_t length = q.shape[2], width = q.shape[3], tables = cos.shape[0], turned = cos.shape[2];
    if (k.shape[3] != width) refuse("k", "of heads as wide as those of q", k);
    const auto table = [&](const char* name, const Tensor& t) {
        if (t.dimensions != 3 || t.shape[2] < 2 || t.shape[2] % 2 || t.shape[2] > width)
            refuse(name, "[B or 1, L, R] of even R, up to the width of a head", t);
        if ((t.shape[0] != 1 && t.shape[0] != q.shape[0]) || t.shape[1] != length)
            refuse(name, "one table of L rows, or one for each sequence", t);
        const Tensor rows{t.data, t.dtype, 2, {t.shape[0] * length, t.shape[2]}, {t.strides[1], t.strides[2]}};
        if (t.shape[0] > 1 && t.strides[0] != length * t.strides[1]) refuse(name, "contiguous", t);
        return require(name, rows, q.dtype, tables * length, turned).data;
    };
    return {{q_rows, result_like("q_out", q_out, q_rows), optional_moments("q_moments", q_moments, q_rows.columns)},
            {k_rows, result_like("k_out", k_out, k_rows), optional_moments("k_moments", k_moments, k_rows.columns)},
            {v_rows, nullptr, optional_moments("v_moments", v_moments, v_rows.columns)},
            width,
            turned,
            table("cos", cos),
            table("sin", sin),
            length,
            tables,
            interleaved,
            round_once};
}

inline AddNorm add_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, float eps,
                        std::string_view style, const Tensor& total, const Tensor& norm, const Tensor& x_moments,
                        const Tensor& norm_moments) {
    const Matrix m = input("x", x);
    return {m,
            residual ? input_like("residual", residual, m) : Matrix{},
            per_channel("weight", weight, m),
            bias ? per_channel("bias", bias, m) : nullptr,
            eps,
            choice<NormStyle>("style", style, NORM_STYLES),
            residual ? result_like("total", total, m) : m.data,
            result_like("norm", norm, m),
            optional_moments("x_moments", x_moments, m.columns),
            optional_moments("norm_moments", norm_moments, m.columns)};
}

// Objects that reading a tensor needs, looked up once, at import.
struct Names {
    PyObject* dtypes[std::size(DTYPES)];
    PyObject *dtype, *data_ptr, *shape, *stride;
};
inline Names names;

inline void look_up_names() {
    const auto torch = pybind11::module_::import("torch");
    for (size_t i = 0; i < std::size(DTYPES); ++i) names.dtypes[i] = pybind11::object(torch.attr(DTYPES[i])).release().ptr();
    names.dtype = PyUnicode_InternFromString("dtype");
    names.data_ptr = PyUnicode_InternFromString("data_ptr");
    names.shape = PyUnicode_InternFromString("shape");
    names.stride = PyUnicode_InternFromString("stride");
}

}  // namespace act

// Reads a tensor by its Python attributes: the extension works with any build of PyTorch, and needs none of its headers.
template <>
struct pybind11::detail::type_caster<act::Tensor> {
    PYBIND11_TYPE_CASTER(act::Tensor, const_name("torch.Tensor | None"));

    bool load(handle source, bool) {
        if (source.is_none()) return true;
        const auto own = [](PyObject* result) {
            if (!result) PyErr_Clear();
            return reinterpret_steal<object>(result);
        };
        const object dtype = own(PyObject_GetAttr(source.ptr(), act::names.dtype));
        const object address = own(PyObject_CallMethodNoArgs(source.ptr(), act::names.data_ptr));
        const object shape = own(PyObject_GetAttr(source.ptr(), act::names.shape));
        const object strides = own(PyObject_CallMethodNoArgs(source.ptr(), act::names.stride));
        if (!dtype || !address || !shape || !strides || !PyTuple_Check(shape.ptr()) || !PyTuple_Check(strides.ptr()))
            return false;
        const auto known = std::find(std::begin(act::names.dtypes), std::end(act::names.dtypes), dtype.ptr());
        value.dimensions = int(PyTuple_GET_SIZE(shape.ptr()));
        if (known == std::end(act::names.dtypes) || value.dimensions < 1 || value.dimensions > 4 ||
            PyTuple_GET_SIZE(strides.ptr()) != value.dimensions)
            return false;
        value.dtype = static_cast<act::DType>(known - act::names.dtypes);
        value.data = reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(address.ptr()));
        for (int i = 0; i < value.dimensions; ++i) {
            value.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
            value.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
        }
        if (PyErr_Occurred()) return PyErr_Clear(), false;
        return true;
    }
};
