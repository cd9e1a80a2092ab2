/* Softmax over channels: a few vectors of voxels at a time, so that maximum and sum stay in registers. */
#ifndef ZNNI_POINTWISE_H
#define ZNNI_POINTWISE_H
#include "activation.h"
#include "maximum.h"

#define ZN_GROUP (4 * ZN_LANES)

/* A group of `vectors` vectors; channels are `pitch` floats apart. */
static inline __attribute__((always_inline)) void
zn_softmax_group(const float *x, float *out, long channels, long pitch, int vectors) {
    zn_vec top[4], sum[4];
    for (int v = 0; v < vectors; v++) {
        top[v] = zn_load(x + v * ZN_LANES);
        sum[v] = zn_splat(0.0f);
    }
    for (long c = 1; c < channels; c++)
        for (int v = 0; v < vectors; v++) top[v] = zn_maximum(top[v], zn_load(x + c * pitch + v * ZN_LANES));
    for (long c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++) {
            zn_vec e = zn_exp(zn_load(x + c * pitch + v * ZN_LANES) - top[v]);
            zn_store(out + c * pitch + v * ZN_LANES, e);
            sum[v] += e;
        }
    for (int v = 0; v < vectors; v++) sum[v] = 1.0f / sum[v];
    for (long c = 0; c < channels; c++)
        for (int v = 0; v < vectors; v++) {
            float *p = out + c * pitch + v * ZN_LANES;
            zn_store(p, zn_load(p) * sum[v]);
        }
}

/* Voxels `first` to `last`, at most ZN_GROUP of them, of one batch element. */
static void zn_softmax(const float *x, float *out, long channels, long voxels, long first, long last) {
    if (last - first == ZN_GROUP) {
        zn_softmax_group(x + first, out + first, channels, voxels, 4);
        return;
    }
    long i = first;
    for (; i + ZN_LANES <= last; i += ZN_LANES) zn_softmax_group(x + i, out + i, channels, voxels, 1);
    for (; i < last; i++) {
        float top = x[i], sum = 0.0f;
        for (long c = 1; c < channels; c++) top = zn_maximum1(top, x[c * voxels + i]);
        for (long c = 0; c < channels; c++) {
            float e = zn_exp(zn_splat(x[c * voxels + i] - top))[0];
            out[c * voxels + i] = e;
            sum += e;
        }
        sum = 1.0f / sum;
        for (long c = 0; c < channels; c++) out[c * voxels + i] *= sum;
    }
}
#endif
