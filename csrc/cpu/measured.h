// Moments that an op may be asked for, or not, of a panel of one of its matrices.
#pragma once

#include "moments.h"

namespace act {
namespace ACT_ISA {

// The sums of a panel whose rows another loop reads as well, or none if its moments are not asked for.
template <class T>
struct Measured {
    const Moments moments;
    PanelSums<LoadedRows<T>> sums;
    LoadedRows<T> chunk;

    Measured(Moments moments, int64_t channels) : moments(moments), sums(moments.data ? channels : 0) {}

    void add(int rows, int64_t channel, int64_t channels) {
        if (!moments.data || !rows) return;
        if (channels < TILE) {
            T padded[CHUNK * TILE];
            chunk.pad(rows, channel, channels, padded);
            sums.add_tile(chunk, rows, channel);
        } else {
            sums.add_tile(chunk, rows, channel);
        }
    }
    void finish(int64_t first, int64_t channels) {
        if (moments.data) sums.merge_into(moments, first, channels);
    }
};

}  // namespace ACT_ISA
}  // namespace act
