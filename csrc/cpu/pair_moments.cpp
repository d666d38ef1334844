// Statistics of every channel of a donor, of a target and of their difference, while both tiles are in cache; and of what
// a swapped output adds to these.
#include "moments.h"

namespace act {
namespace ACT_ISA {

template <class T, bool SWAPPED>
static void panel(const Pair& pair, const uint8_t* mask, int64_t first, int64_t channels) {
    PanelSums<Rows<T>> donor_sums(channels), target_sums(channels);
    PanelSums<Difference<T>> difference_sums(channels);
    PanelSums<Difference<T, true>> swap_sums;
    PanelSums<Product<T>> product_sums;
    if constexpr (SWAPPED) {
        swap_sums.reset(channels);
        product_sums.reset(channels);
    }
    RowWalk walk(pair.donor.rows, mask);
    const Matrix* const matrices[] = {&pair.donor, &pair.target, &pair.swapped};
    const int64_t whole = channels / TILE * TILE;
    Rows<T> donor, target, swapped;
    const Difference<T> difference(donor, target);
    const Difference<T, true> swap(swapped, target);
    const Product<T> product(difference, swap);
    T donor_padded[CHUNK * TILE], target_padded[CHUNK * TILE], swapped_padded[CHUNK * TILE];
    const auto next = [&] {
        if constexpr (SWAPPED) return walk.next(first, matrices, &donor, &target, &swapped);
        else return walk.next(first, matrices, &donor, &target);
    };
    while (const int rows = next()) {
        for (int64_t channel = 0; channel < channels; channel += TILE) {
            if (channel == whole) {
                donor.pad(rows, whole, channels - whole, donor_padded);
                target.pad(rows, whole, channels - whole, target_padded);
                if constexpr (SWAPPED) swapped.pad(rows, whole, channels - whole, swapped_padded);
            }
            donor_sums.add_tile(donor, rows, channel);
            target_sums.add_tile(target, rows, channel);
            difference_sums.add_tile(difference, rows, channel);
            if constexpr (SWAPPED) {
                swap_sums.add_tile(swap, rows, channel);
                product_sums.add_tile(product, rows, channel);
            }
        }
        donor_sums.counted += rows;
        target_sums.counted += rows;
        difference_sums.counted += rows;
        if constexpr (SWAPPED) {
            swap_sums.counted += rows;
            product_sums.counted += rows;
        }
    }
    donor_sums.merge_into(pair.blocks[0], first, channels);
    target_sums.merge_into(pair.blocks[1], first, channels);
    difference_sums.merge_into(pair.blocks[2], first, channels);
    if constexpr (SWAPPED) {
        swap_sums.merge_into(pair.blocks[3], first, channels);
        product_sums.merge_into(pair.blocks[4], first, channels);
    }
}

template <class T, bool SWAPPED>
static void run(const Pair& pair, const uint8_t* mask, int threads) {
    threads = useful_threads((SWAPPED ? 3 : 2) * pair.donor.rows * pair.donor.columns, threads);
    const Panels panels(pair.donor.columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.width, rest = pair.donor.columns - first;
        panel<T, SWAPPED>(pair, mask, first, rest < panels.width ? rest : panels.width);
    }
}

void pair_moments(const Pair& pair, const uint8_t* mask, int threads) {
    with_format(pair.donor.dtype, [&](auto format) {
        if (pair.swapped.data) run<decltype(format), true>(pair, mask, threads);
        else run<decltype(format), false>(pair, mask, threads);
    });
}

}  // namespace ACT_ISA
}  // namespace act
