/* Direct convolution of many output channels: a matrix product of weights (channels x terms) and input (terms x voxels), whose
 * second factor is gathered from the image while it is staged, never stored (Chetlur et al., "cuDNN: efficient primitives for
 * deep learning", 2014). A term is an input channel and a voxel of the kernel.
 *
 * A thread computes THREAD_CHANNELS channels of 8 voxels in registers, a warp two times the channels and 128 voxels, a block
 * CHANNEL_WARPS x VOXEL_WARPS warps. Terms go by in slabs, each warp staging WARP_TERMS of them for its voxels; while one slab
 * is multiplied the next one is on its way to registers. Even and odd lanes have different channels and the same voxels, so
 * that a quarter of a warp reads from different banks of shared memory, and what its lanes share once. Results pass through
 * shared memory, since the four voxels next to each other that a thread holds would be stored by fours.
 *
 * Weights come packed: for each tile of channels, for each slab, (term, channel); zero beyond the last term and channel.
 * Grid: (tiles of voxels * channel_tiles); block: (32 * CHANNEL_WARPS * VOXEL_WARPS). */
#include "activation.cuh"
#include "direct_columns.cuh"

/* A multiple of 2, at least 4. */
#ifndef THREAD_CHANNELS
#define THREAD_CHANNELS 10
#endif
#ifndef CHANNEL_WARPS
#define CHANNEL_WARPS 4
#endif
#ifndef VOXEL_WARPS
#define VOXEL_WARPS 1
#endif
#ifndef WARP_TERMS
#define WARP_TERMS 2
#endif
/* Blocks that a multiprocessor should hold, which bounds the registers. */
#ifndef BLOCKS
#define BLOCKS 3
#endif

#define WARPS (CHANNEL_WARPS * VOXEL_WARPS)
#define THREADS (32 * WARPS)
#define WARP_CHANNELS (2 * THREAD_CHANNELS)
#define TILE_CHANNELS (WARP_CHANNELS * CHANNEL_WARPS)
#define TILE_VOXELS (VOXELS * VOXEL_WARPS)
#define TERMS (WARP_TERMS * CHANNEL_WARPS)
#define WEIGHT_VECTORS (TERMS * TILE_CHANNELS / 4)
#define WEIGHT_LOADS ((WEIGHT_VECTORS + THREADS - 1) / THREADS)
/* Floats of a slab. */
#define SLAB (TERMS * (TILE_CHANNELS + TILE_VOXELS))
/* Rows in which results pass through shared memory, four a warp at a time; padded so that rows of the two halves of a warp's
 * channels do not meet in a bank. */
#define ROW (VOXELS + 16)
#define PASSED (4 * ROW * WARPS)
#define SHARED_FLOATS (2 * SLAB > PASSED ? 2 * SLAB : PASSED)

/* What is on its way from memory to a slab. */
struct Coming {
    float4 weights[WEIGHT_LOADS];
    float values[WARP_TERMS][COLUMNS];
};

/* Where a warp's terms of a slab lie from where a column begins, in bytes, and the bits they need; below 0 are no terms. */
struct Terms {
    long long offset[WARP_TERMS];
    Mask needs[WARP_TERMS];
};

__device__ __forceinline__ void look_up(Terms &terms, const long long *offsets, const unsigned long long *needs, int slab,
                                        int channel_warp) {
#pragma unroll
    for (int t = 0; t < WARP_TERMS; ++t) {
        const long long term = (long long)slab * TERMS + t * CHANNEL_WARPS + channel_warp;
        terms.offset[t] = offsets[term];
        terms.needs[t] = MASK_BITS ? (Mask)needs[term] : 0;
    }
}

__device__ __forceinline__ void load(Coming &coming, const float *x, const Columns &columns, const Terms &terms,
                                     const float4 *weights, int thread) {
#pragma unroll
    for (int t = 0; t < WARP_TERMS; ++t)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
            const bool read = terms.offset[t] >= 0 && (columns.inside[c] & terms.needs[t]) == terms.needs[t];
            coming.values[t][c] = read ? value_at(x, columns.from[c], terms.offset[t]) : 0.0f;
        }
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
        const int at = thread + i * THREADS;
        if (WEIGHT_VECTORS % THREADS == 0 || at < WEIGHT_VECTORS) coming.weights[i] = weights[at];
    }
}

__device__ __forceinline__ void stage(float *slab, const Coming &coming, int thread, int channel_warp, int voxel_warp,
                                      int lane) {
#pragma unroll
    for (int i = 0; i < WEIGHT_LOADS; ++i) {
        const int at = thread + i * THREADS;
        if (WEIGHT_VECTORS % THREADS == 0 || at < WEIGHT_VECTORS) ((float4 *)slab)[at] = coming.weights[i];
    }
    float *values = slab + TERMS * TILE_CHANNELS + voxel_warp * VOXELS + lane;
#pragma unroll
    for (int t = 0; t < WARP_TERMS; ++t)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
            values[(t * CHANNEL_WARPS + channel_warp) * TILE_VOXELS + 32 * c] = coming.values[t][c];
}

__device__ __forceinline__ void get4(float *to, const float *from) {
    const float4 four = *(const float4 *)from;
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

/* Which of a warp's channels is number i of a thread: halves of a warp take turns, by fours, the last time perhaps by twos. */
__device__ __forceinline__ int channel_of(int i, int half) {
    return i < THREAD_CHANNELS / 4 * 4 ? i / 4 * 8 + half * 4 + i % 4 : THREAD_CHANNELS / 4 * 8 + half * 2 + i % 4;
}

/* `channels` and `values`: the first of the warp's, and of the thread's, in a slab. */
__device__ __forceinline__ void multiply(float (&sums)[THREAD_CHANNELS][8], const float *channels, int half,
                                         const float *values) {
#pragma unroll
    for (int term = 0; term < TERMS; ++term) {
        float w[THREAD_CHANNELS], v[8];
#pragma unroll
        for (int i = 0; i + 4 <= THREAD_CHANNELS; i += 4) get4(w + i, channels + term * TILE_CHANNELS + channel_of(i, half));
        if (THREAD_CHANNELS % 4) {
            const int i = THREAD_CHANNELS / 4 * 4;
            const float2 two = *(const float2 *)(channels + term * TILE_CHANNELS + channel_of(i, half));
            w[i] = two.x, w[i + 1] = two.y;
        }
        get4(v, values + term * TILE_VOXELS);
        get4(v + 4, values + term * TILE_VOXELS + 64);
#pragma unroll
        for (int i = 0; i < THREAD_CHANNELS; ++i)
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[i][j] += w[i] * v[j];
    }
}

__device__ __forceinline__ float4 four_of(const float *from) { return make_float4(from[0], from[1], from[2], from[3]); }

/* `offsets` and `needs` of all slabs, and of one more that is looked up in vain. */
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
direct(const float *__restrict__ x, float *__restrict__ out, const float *__restrict__ weights,
       const float *__restrict__ bias, const long long *__restrict__ offsets,
       const unsigned long long *__restrict__ needs, int slabs, int channels, int channel_tiles, int activation, float a,
       float b, GEOMETRY) {
    __shared__ float4 shared_vectors[SHARED_FLOATS / 4];
    float *const shared = (float *)shared_vectors;
    const int thread = (int)threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int channel_warp = warp % CHANNEL_WARPS, voxel_warp = warp / CHANNEL_WARPS;
    const int tile = (int)(blockIdx.x / (unsigned)channel_tiles), channel_tile = (int)(blockIdx.x % (unsigned)channel_tiles);
    const long long first = (long long)tile * TILE_VOXELS + voxel_warp * VOXELS;
    const float4 *packed = (const float4 *)weights + (long long)channel_tile * slabs * WEIGHT_VECTORS;
    const int half = lane & 1, group = lane >> 1;

    const Columns columns = columns_of(first, lane, voxels, size_z, size_y, size_x, image_step, step_z, step_y, step_x,
                                       origin, axes);
    Terms terms;
    Coming coming;
    look_up(terms, offsets, needs, 0, channel_warp);
    load(coming, x, columns, terms, packed, thread);
    look_up(terms, offsets, needs, 1, channel_warp);
    stage(shared, coming, thread, channel_warp, voxel_warp, lane);
    __syncthreads();

    float sums[THREAD_CHANNELS][8] = {};
    for (int slab = 0; slab < slabs; ++slab) {
        const bool more = slab + 1 < slabs;
        if (more) {
            packed += WEIGHT_VECTORS;
            load(coming, x, columns, terms, packed, thread);
            look_up(terms, offsets, needs, slab + 2, channel_warp);
        }
        const float *now = shared + (slab & 1) * SLAB;
        multiply(sums, now + channel_warp * WARP_CHANNELS, half,
                 now + TERMS * TILE_CHANNELS + voxel_warp * VOXELS + group * 4);
        if (more) stage(shared + (~slab & 1) * SLAB, coming, thread, channel_warp, voxel_warp, lane);
        __syncthreads();
    }

    const long long volume = (long long)size_z * size_y * size_x;
    const Stores stores = stores_of(first, lane, channels, voxels, volume);
    const int first_channel = channel_tile * TILE_CHANNELS + channel_warp * WARP_CHANNELS;
    float *rows = shared + warp * 4 * ROW;
#pragma unroll
    for (int i = 0; i < THREAD_CHANNELS; i += 2) {
        /* channels i and i + 1 of both halves */
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float *row = rows + (2 * j + half) * ROW + group * 4;
            *(float4 *)row = four_of(sums[i + j]);
            *(float4 *)(row + 64) = four_of(sums[i + j] + 4);
        }
        __syncthreads();
#pragma unroll 1
        for (int row = 0; row < 4; ++row) {
            const int channel = first_channel + channel_of(i + (row >> 1), row & 1);
            if (channel < channels) {
                const float shift = bias[channel];
                float values[COLUMNS];
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) values[c] = rows[row * ROW + 32 * c + lane] + shift;
                activate(values, activation, a, b);
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
                    if (stores.wanted[c]) out[stores.at[c] + channel * volume] = values[c];
            }
        }
        __syncthreads();
    }
}
