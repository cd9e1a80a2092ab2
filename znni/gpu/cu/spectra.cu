/* Sums of products of spectra that lie one frequency after another: each thread has a frequency, and ITEMS x OUTPUTS sums in
 * registers. No spectrum need be transposed; those of the kernels are read once for ITEMS items. */
#include "complex64.cuh"

#ifndef ITEMS
#define ITEMS 4
#endif
#ifndef OUTPUTS
#define OUTPUTS 4
#endif

enum { MULTIPLY_THREADS = 128 };

/* result[item][output][f] = sum over channels of input[item][channel][f] * conj(kernel[output][channel][f]). Blocks of 128
 * threads along the frequencies; those of the same frequencies follow each other, so that what they share is in the cache. */
extern "C" __global__ void __launch_bounds__(MULTIPLY_THREADS) multiply_spectra(
    const complex64 *__restrict__ input, const complex64 *__restrict__ kernel, complex64 *__restrict__ result, int items,
    int channels, int outputs, int frequencies) {
    const int output_tiles = (outputs + OUTPUTS - 1) / OUTPUTS, item_tiles = (items + ITEMS - 1) / ITEMS;
    int block = blockIdx.x;
    const int first_output = block % output_tiles * OUTPUTS;
    block /= output_tiles;
    const int first_item = block % item_tiles * ITEMS;
    const long long f = (long long)(block / item_tiles) * MULTIPLY_THREADS + threadIdx.x;
    if (f >= frequencies) return;

    const complex64 *inputs[ITEMS], *kernels[OUTPUTS]; /* beyond the last one: the last one again, which is not stored */
    const long long stride = (long long)channels * frequencies;
    for (int i = 0; i < ITEMS; ++i) inputs[i] = input + (first_item + i < items ? first_item + i : items - 1) * stride + f;
    for (int o = 0; o < OUTPUTS; ++o)
        kernels[o] = kernel + (first_output + o < outputs ? first_output + o : outputs - 1) * stride + f;
    complex64 sums[ITEMS][OUTPUTS] = {};
    long long at = 0;
#pragma unroll 2
    for (int c = 0; c < channels; ++c) {
        complex64 x[ITEMS], w[OUTPUTS];
        for (int i = 0; i < ITEMS; ++i) x[i] = inputs[i][at];
        for (int o = 0; o < OUTPUTS; ++o) w[o] = kernels[o][at];
        for (int i = 0; i < ITEMS; ++i)
            for (int o = 0; o < OUTPUTS; ++o) {
                sums[i][o].re += x[i].re * w[o].re + x[i].im * w[o].im;
                sums[i][o].im += x[i].im * w[o].re - x[i].re * w[o].im;
            }
        at += frequencies;
    }
    for (int i = 0; i < ITEMS; ++i)
        for (int o = 0; o < OUTPUTS; ++o)
            if (first_item + i < items && first_output + o < outputs)
                result[((long long)(first_item + i) * outputs + first_output + o) * frequencies + f] = sums[i][o];
}
