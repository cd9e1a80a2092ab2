/* Direct convolution of few output channels. Products per value read are few too, so that values go straight from the caches to
 * registers, along x; weights and the places of the terms pass through shared memory. A thread computes CHANNELS channels of
 * four voxels, a block CHANNELS channels of 128 VOXEL_WARPS voxels.
 *
 * Weights come packed: for each tile of channels, (term, channel), zero beyond the last channel.
 * Grid: (tiles of voxels * channel_tiles); block: (32 * VOXEL_WARPS). */
#include "activation.cuh"
#include "direct_columns.cuh"

#ifndef CHANNELS
#define CHANNELS 4
#endif
#ifndef VOXEL_WARPS
#define VOXEL_WARPS 4
#endif
/* Blocks that a multiprocessor should hold, which bounds the registers. */
#ifndef BLOCKS
#define BLOCKS 8
#endif

#define THREADS (32 * VOXEL_WARPS)
/* Terms that are staged together. */
#define SLAB 128

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
direct_few(const float *__restrict__ x, float *__restrict__ out, const float *__restrict__ weights,
           const float *__restrict__ bias, const long long *__restrict__ offsets,
           const unsigned long long *__restrict__ needs, int terms, int channels, int channel_tiles, int activation, float a,
           float b, GEOMETRY) {
    __shared__ float4 staged_weights[SLAB * CHANNELS / 4];
    __shared__ long long staged_offsets[SLAB];
#if MASK_BITS
    __shared__ Mask staged_needs[SLAB];
#endif
    const int thread = (int)threadIdx.x, lane = thread & 31;
    const int tile = (int)(blockIdx.x / (unsigned)channel_tiles), channel_tile = (int)(blockIdx.x % (unsigned)channel_tiles);
    const long long first = ((long long)tile * VOXEL_WARPS + (thread >> 5)) * VOXELS;
    const float4 *packed = (const float4 *)weights + (long long)channel_tile * terms * (CHANNELS / 4);

    const Columns columns = columns_of(first, lane, voxels, size_z, size_y, size_x, image_step, step_z, step_y, step_x,
                                       origin, axes);
    float sums[CHANNELS][COLUMNS] = {};
    for (int start = 0; start < terms; start += SLAB) {
        const int count = min(SLAB, terms - start);
        __syncthreads();
        for (int i = thread; i < count * (CHANNELS / 4); i += THREADS)
            staged_weights[i] = packed[(long long)start * (CHANNELS / 4) + i];
        for (int i = thread; i < count; i += THREADS) {
            staged_offsets[i] = offsets[start + i];
#if MASK_BITS
            staged_needs[i] = (Mask)needs[start + i];
#endif
        }
        __syncthreads();
#pragma unroll 4
        for (int term = 0; term < count; ++term) {
            const long long offset = staged_offsets[term];
            float values[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
#if MASK_BITS
                const Mask need = staged_needs[term];
                values[c] = (columns.inside[c] & need) == need ? value_at(x, columns.from[c], offset) : 0.0f;
#else
                values[c] = value_at(x, columns.from[c], offset);
#endif
            }
#pragma unroll
            for (int i = 0; i < CHANNELS; i += 4) {
                const float4 w = staged_weights[term * (CHANNELS / 4) + i / 4];
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) {
                    sums[i][c] += w.x * values[c];
                    sums[i + 1][c] += w.y * values[c];
                    sums[i + 2][c] += w.z * values[c];
                    sums[i + 3][c] += w.w * values[c];
                }
            }
        }
    }

    const long long volume = (long long)size_z * size_y * size_x;
    const Stores stores = stores_of(first, lane, channels, voxels, volume);
#pragma unroll
    for (int i = 0; i < CHANNELS; ++i) {
        const int channel = channel_tile * CHANNELS + i;
        if (channel < channels) {
            const float shift = bias[channel];
            float values[COLUMNS];
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) values[c] = sums[i][c] + shift;
            activate(values, activation, a, b);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
                if (stores.wanted[c]) out[stores.at[c] + channel * volume] = values[c];
        }
    }
}
