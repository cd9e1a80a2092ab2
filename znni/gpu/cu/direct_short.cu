/* Direct convolution of few terms (input channels x voxels of the kernel), as a network's first layer has: its output is what
 * takes time. A thread holds all that four voxels need of the input in registers, and goes through the output channels, whose
 * weights pass through shared memory: the input is read once, the output written along x. A block computes all channels of
 * 128 VOXEL_WARPS voxels.
 *
 * Weights come packed: (channel, term), zero beyond the last term. Grid: (tiles of voxels); block: (32 * VOXEL_WARPS). */
#include "activation.cuh"
#include "direct_columns.cuh"

/* A multiple of 4. */
#ifndef TERMS
#define TERMS 8
#endif
#ifndef VOXEL_WARPS
#define VOXEL_WARPS 4
#endif
/* Blocks that a multiprocessor should hold, which bounds the registers. */
#ifndef BLOCKS
#define BLOCKS 6
#endif

#define THREADS (32 * VOXEL_WARPS)
#define VECTORS (TERMS / 4)
/* Channels whose weights are staged together. */
#define SLAB 96

/* `offsets` and `needs` of TERMS terms, below 0 where there are no more. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
direct_short(const float *__restrict__ x, float *__restrict__ out, const float *__restrict__ weights,
             const float *__restrict__ bias, const long long *__restrict__ offsets,
             const unsigned long long *__restrict__ needs, int channels, int activation, float a, float b, GEOMETRY) {
    __shared__ float4 staged[SLAB * VECTORS];
    __shared__ float shifts[SLAB];
    const int thread = (int)threadIdx.x, lane = thread & 31;
    const long long first = ((long long)blockIdx.x * VOXEL_WARPS + (thread >> 5)) * VOXELS;
    const long long volume = (long long)size_z * size_y * size_x;
    const float4 *packed = (const float4 *)weights;

    const Columns columns = columns_of(first, lane, voxels, size_z, size_y, size_x, image_step, step_z, step_y, step_x,
                                       origin, axes);
    float values[TERMS][COLUMNS];
#pragma unroll
    for (int term = 0; term < TERMS; ++term) {
        const long long offset = offsets[term];
        const Mask need = MASK_BITS ? (Mask)needs[term] : 0;
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            values[term][c] =
                offset >= 0 && (columns.inside[c] & need) == need ? value_at(x, columns.from[c], offset) : 0.0f;
    }

    Stores stores = stores_of(first, lane, channels, voxels, volume);
    for (int start = 0; start < channels; start += SLAB) {
        const int count = min(SLAB, channels - start);
        __syncthreads();
        for (int i = thread; i < count * VECTORS; i += THREADS) staged[i] = packed[(long long)start * VECTORS + i];
        for (int i = thread; i < count; i += THREADS) shifts[i] = bias[start + i];
        __syncthreads();
#pragma unroll 1
        for (int channel = 0; channel < count; ++channel) {
            float sums[COLUMNS] = {};
#pragma unroll
            for (int i = 0; i < VECTORS; ++i) {
                const float4 w = staged[channel * VECTORS + i];
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    sums[c] += w.x * values[4 * i][c];
                    sums[c] += w.y * values[4 * i + 1][c];
                    sums[c] += w.z * values[4 * i + 2][c];
                    sums[c] += w.w * values[4 * i + 3][c];
                }
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sums[c] += shifts[channel];
            activate(sums, activation, a, b);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                if (stores.wanted[c]) out[stores.at[c]] = sums[c];
                stores.at[c] += volume;
            }
        }
    }
}
