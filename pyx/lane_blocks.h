/* Lines of voxels of channel-blocked arrays, ZN_LANES channels of a voxel side by side, in and out of transforms. */
#ifndef ZNNI_LANE_BLOCKS_H
#define ZNNI_LANE_BLOCKS_H
#include "activation.h"
#include "fft_planes.h"

/* Voxels begin <= x < end, `step` floats apart, of a line at `re` and one at `im` (each may be absent: NULL) as points:
 * one vector of real parts, one of imaginary ones. Points before `begin` are zero, and those of an absent line. */
static inline void zn_block_load(const float *re, const float *im, long step, int begin, int end, float *points) {
    const zn_vec zero = zn_splat(0.0f);
    for (long x = 0; x < end; x++, points += 2 * ZN_LANES) {
        zn_store(points, re && x >= begin ? zn_load(re + x * step) : zero);
        zn_store(points + ZN_LANES, im && x >= begin ? zn_load(im + x * step) : zero);
    }
}

/* Asks for the cache lines of so many floats. */
static inline void zn_block_prefetch(const float *voxels, long floats) {
    for (long i = 0; i < floats + 15; i += 16) __builtin_prefetch(voxels + (i < floats ? i : floats - 1));
}

static inline __attribute__((always_inline)) void zn_block_store_as(const float *from, long step, int count,
                                                                    zn_vec bias, const int code, float a, float b,
                                                                    zn_ivec mask, const int stream, float *voxels,
                                                                    long apart) {
    for (long x = 0; x < count; x++) {
        const zn_vec v = (zn_vec)((zn_ivec)zn_activate(zn_load(from + x * step) + bias, code, a, b) & mask);
        if (stream) zn_stream(voxels + x * apart, v);
        else zn_store(voxels + x * apart, v);
    }
}

/* `count` vectors, `step` floats apart, plus bias and through the activation, to voxels `apart` floats apart; zeros in
 * all lanes but the first `lanes`. With `stream`, for which voxels must be aligned to vectors, past the caches. */
static inline void zn_block_store(const float *from, long step, int count, zn_vec bias, int code, float a, float b,
                                  int lanes, int stream, float *voxels, long apart) {
    zn_ivec index;
    for (int l = 0; l < ZN_LANES; l++) index[l] = l;
    const zn_ivec mask = index < lanes;
    if (code == ZN_RELU && stream) zn_block_store_as(from, step, count, bias, ZN_RELU, a, b, mask, 1, voxels, apart);
    else if (code == ZN_RELU) zn_block_store_as(from, step, count, bias, ZN_RELU, a, b, mask, 0, voxels, apart);
    else if (code == ZN_LINEAR && stream)
        zn_block_store_as(from, step, count, bias, ZN_LINEAR, a, b, mask, 1, voxels, apart);
    else zn_block_store_as(from, step, count, bias, code, a, b, mask, stream, voxels, apart);
}
#endif
