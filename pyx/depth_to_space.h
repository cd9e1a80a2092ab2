/* Rows of channels spread over voxels. */
#ifndef ZNNI_DEPTH_TO_SPACE_H
#define ZNNI_DEPTH_TO_SPACE_H
#include "streaming.h"

ZN_INLINE void zn_put(float *to, zn_vec v, int stream) {
    if (stream) zn_stream(to, v);
    else zn_store(to, v);
}

/* Every `factor`-th voxel of a blocked row of `n`, from `start` on: `real` channels, from `channel` on, of the voxels of x;
 * of two blocks, `block` floats apart, where they do not start one. */
static void zn_spread_lanes(const float *x, float *out, long channel, long real, long block, long n, long factor, long start,
                            int stream) {
    long lane = channel % ZN_LANES;
    x += channel / ZN_LANES * block;
    if (lane == 0 && real == ZN_LANES) {
        for (long i = start; i < n; i += factor, x += ZN_LANES) zn_put(out + i * ZN_LANES, zn_load(x), stream);
        return;
    }
    long next = lane + real > ZN_LANES ? block : 0;
    int32_t from[ZN_LANES], is[ZN_LANES];
    zn_ivec pick, there;
    for (int j = 0; j < ZN_LANES; j++) from[j] = lane + j, is[j] = j < real ? -1 : 0;
    memcpy(&pick, from, sizeof pick);
    memcpy(&there, is, sizeof there);
    for (long i = start; i < n; i += factor, x += ZN_LANES) {
        zn_vec v = __builtin_shuffle(zn_load(x), zn_load(x + next), pick);
        zn_put(out + i * ZN_LANES, (zn_vec)((zn_ivec)v & there), stream);
    }
}

/* The same of a plain row. */
static void zn_spread(const float *restrict x, float *restrict out, long n, long factor, long start) {
    for (long i = start; i < n; i += factor) out[i] = *x++;
}
/* A plain row of `n`: a, b, a, b, .. */
static void zn_spread_pair(const float *restrict a, const float *restrict b, float *restrict out, long n) {
    for (long q = 0; q < n / 2; q++) {
        out[2 * q] = a[q];
        out[2 * q + 1] = b[q];
    }
    if (n % 2) out[n - 1] = a[n / 2];
}
#endif
