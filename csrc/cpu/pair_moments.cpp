// Statistics of every channel of a donor, of a target and of their difference, while both tiles are in cache.
#include "moments.h"

namespace act {
namespace ACT_ISA {

template <class T>
static void panel(const Matrix& donor, const Matrix& target, const uint8_t* mask, const Moments blocks[3],
                  int64_t first, int64_t channels) {
    PanelSums<Rows<T>> donor_sums(channels), target_sums(channels);
    PanelSums<Difference<T>> difference_sums(channels);
    RowWalk walk(donor.rows, mask);
    const Matrix* const matrices[] = {&donor, &target};
    const int64_t whole = channels / TILE * TILE;
    Rows<T> donor_rows, target_rows;
    const Difference<T> difference{donor_rows, target_rows};
    T donor_padded[CHUNK * TILE], target_padded[CHUNK * TILE];
    while (const int rows = walk.next(first, matrices, &donor_rows, &target_rows)) {
        for (int64_t channel = 0; channel < channels; channel += TILE) {
            if (channel == whole) {
                donor_rows.pad(rows, whole, channels - whole, donor_padded);
                target_rows.pad(rows, whole, channels - whole, target_padded);
            }
            donor_sums.add_tile(donor_rows, rows, channel);
            target_sums.add_tile(target_rows, rows, channel);
            difference_sums.add_tile(difference, rows, channel);
        }
        donor_sums.counted += rows;
        target_sums.counted += rows;
        difference_sums.counted += rows;
    }
    donor_sums.merge_into(blocks[0], first, channels);
    target_sums.merge_into(blocks[1], first, channels);
    difference_sums.merge_into(blocks[2], first, channels);
}

template <class T>
static void run(const Matrix& donor, const Matrix& target, const uint8_t* mask, const Moments blocks[3], int threads) {
    threads = useful_threads(2 * donor.rows * donor.columns, threads);
    const Panels panels(donor.columns, threads);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = p * panels.width, rest = donor.columns - first;
        panel<T>(donor, target, mask, blocks, first, rest < panels.width ? rest : panels.width);
    }
}

void pair_moments(const Matrix& donor, const Matrix& target, const uint8_t* mask, const Moments blocks[3],
                  int threads) {
    with_format(donor.dtype, [&](auto format) { run<decltype(format)>(donor, target, mask, blocks, threads); });
}

}  // namespace ACT_ISA
}  // namespace act
