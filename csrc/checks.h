// Checks of what arrives from Python as integers; each throws std::invalid_argument that names the argument.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace act {

inline DType dtype_of(int code) {
    if (code < 0 || code > 2) throw std::invalid_argument("dtype code must be 0 to 2, got " + std::to_string(code));
    return static_cast<DType>(code);
}

template <class T>
T* pointer(const char* name, uintptr_t address) {
    if (!address) throw std::invalid_argument(std::string(name) + " is a null pointer");
    return reinterpret_cast<T*>(address);
}

inline Matrix matrix(const char* name, uintptr_t address, int64_t rows, int64_t columns, int64_t row_stride) {
    if (rows < 1 || columns < 1 || rows > INT32_MAX)
        throw std::invalid_argument(std::string(name) + " must have 1 to 2^31-1 rows and at least one column, got " +
                                    std::to_string(rows) + " x " + std::to_string(columns));
    return {pointer<void>(name, address), rows, columns, row_stride};
}

// Moments that may be left out: a null address.
inline Moments moments_at(uintptr_t address, int64_t stride) { return {reinterpret_cast<double*>(address), stride}; }

// A code that Python took from a tuple of `count` names.
template <class Choice>
Choice choice(const char* name, int code, int count) {
    if (code < 0 || code >= count)
        throw std::invalid_argument(std::string(name) + " code must be below " + std::to_string(count) + ", got " +
                                    std::to_string(code));
    return static_cast<Choice>(code);
}

// Columns, strides and addresses of q, k and v, and of their tables.
inline Rotary rotary_of(uintptr_t q, uintptr_t k, uintptr_t v, int64_t rows, int64_t q_columns, int64_t k_columns,
                        int64_t v_columns, int64_t q_stride, int64_t k_stride, int64_t v_stride, uintptr_t q_out,
                        uintptr_t k_out, uintptr_t q_moments, int64_t q_moments_stride, uintptr_t k_moments,
                        int64_t k_moments_stride, uintptr_t v_moments, int64_t v_moments_stride, int64_t width,
                        int64_t turned, uintptr_t cos, uintptr_t sin, int64_t length, int64_t tables, bool interleaved,
                        bool round_once) {
    if (width < 1 || turned < 2 || turned % 2 || turned > width || q_columns % width || k_columns % width ||
        length < 1 || tables < 1)
        throw std::invalid_argument("width must divide the columns of q and k, and turned must be even and up to width");
    return {{matrix("q", q, rows, q_columns, q_stride), pointer<void>("q_out", q_out), moments_at(q_moments, q_moments_stride)},
            {matrix("k", k, rows, k_columns, k_stride), pointer<void>("k_out", k_out), moments_at(k_moments, k_moments_stride)},
            {v ? matrix("v", v, rows, v_columns, v_stride) : Matrix{}, nullptr, moments_at(v_moments, v_moments_stride)},
            width,
            turned,
            pointer<void>("cos", cos),
            pointer<void>("sin", sin),
            length,
            tables,
            interleaved,
            round_once};
}

}  // namespace act
