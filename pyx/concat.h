/* Channels of one blocked tensor to a place among those of another: lanes move where the place is within a block. */
#ifndef ZNNI_CONCAT_H
#define ZNNI_CONCAT_H
#include "streaming.h"

/* Lanes shift .. ZN_LANES - 1 of `low`, then 0 .. shift - 1 of `high`, each absent (NULL) or `n` vectors long; `n` vectors of
 * `out`, which keep what they hold where `keep`: the lanes that come in must be zero there. */
static void zn_shift_lanes(const float *low, const float *high, float *out, long n, int shift, int keep) {
    const zn_vec zero = zn_splat(0.0f);
    zn_ivec index;
    for (int l = 0; l < ZN_LANES; l++) index[l] = l + shift;
    for (long i = 0; i < n * ZN_LANES; i += ZN_LANES) {
        const zn_vec a = low ? zn_load(low + i) : zero, b = high ? zn_load(high + i) : zero;
        zn_ivec v = (zn_ivec)__builtin_shuffle(a, b, index);
        if (keep) v |= (zn_ivec)zn_load(out + i);
        zn_store(out + i, (zn_vec)v);
    }
}

static void zn_copy_run(float *to, const float *from, long n, int stream) {
    if (!stream) {
        memcpy(to, from, n * sizeof(float));
        return;
    }
    zn_stream_row(to, from, n);
    zn_stream_end();
}
#endif
