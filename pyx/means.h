/* Sums, and maxima, of runs of voxels; rows of sums over windows. */
#ifndef ZNNI_MEANS_H
#define ZNNI_MEANS_H
#include "simd.h"

enum { ZN_SHORT = 32 }; /* vectors that are summed in single precision before their sum joins the others in double */

static inline float zn_larger(float a, float b) { return b > a || b != b ? b : a; } /* NaN where there is one */

/* Of `n` floats, `lanes` (1, or those of a vector) to a voxel, the sums or the maxima, lane by lane. */
static void zn_reduce_run(const float *x, double *into, long n, long lanes, int maximum) {
    double total[ZN_LANES] = {0};
    long i = 0, j;
    if (maximum) {
        float most[ZN_LANES];
        for (j = 0; j < ZN_LANES; j++) most[j] = x[j < n ? j : 0];
        for (; i + ZN_LANES <= n; i += ZN_LANES)
            for (j = 0; j < ZN_LANES; j++) most[j] = zn_larger(most[j], x[i + j]);
        for (j = 0; i + j < n; j++) most[j] = zn_larger(most[j], x[i + j]);
        if (lanes == 1)
            for (j = 1; j < ZN_LANES; j++) most[0] = zn_larger(most[0], most[j]);
        for (j = 0; j < lanes; j++) into[j] = most[j];
        return;
    }
    while (i + ZN_LANES <= n) {
        zn_vec sum = zn_splat(0.0f);
        for (j = 0; j < ZN_SHORT && i + ZN_LANES <= n; j++, i += ZN_LANES) sum += zn_load(x + i);
        for (j = 0; j < ZN_LANES; j++) total[j] += sum[j];
    }
    for (j = 0; i + j < n; j++) total[j] += x[i + j];
    if (lanes == 1)
        for (j = 1; j < ZN_LANES; j++) total[0] += total[j];
    for (j = 0; j < lanes; j++) into[j] = total[j];
}

/* to[i] += from[i * step] */
static void zn_add_picked(float *restrict to, const float *restrict from, long n, long step) {
    if (step == 1)
        for (long i = 0; i < n; i++) to[i] += from[i];
    else if (step == 2)
        for (long i = 0; i < n; i++) to[i] += from[2 * i];
    else
        for (long i = 0; i < n; i++) to[i] += from[i * step];
}
#endif
