/* Mean and deviation of voxels, by chunks whose sums are those of differences from about their own mean: neither a mean much
 * larger than the deviation nor a long sum costs digits. Floats are added a few at a time, doubles otherwise. */
#ifndef ZNNI_NORM_H
#define ZNNI_NORM_H
#include "simd.h"

enum { ZN_RUN = 64 }; /* vectors whose sum is kept in floats */

/* About the mean of whole vectors, of each lane. */
static zn_vec zn_about_mean(const float *x, long vectors) {
    zn_vec sum[4] = {{0}};
    long i = 0;
    for (; i + 4 <= vectors; i += 4)
        for (int j = 0; j < 4; j++) sum[j] += zn_load(x + (i + j) * ZN_LANES);
    for (; i < vectors; i++) sum[0] += zn_load(x + i * ZN_LANES);
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.0f / (float)vectors);
}

/* Of the differences of whole vectors from `about`, sums and sums of squares of each lane. */
static void zn_sums(const float *x, long vectors, zn_vec about, double *sums, double *squares) {
    for (int l = 0; l < ZN_LANES; l++) sums[l] = squares[l] = 0;
    for (long first = 0; first < vectors; first += ZN_RUN) {
        const long last = first + ZN_RUN < vectors ? first + ZN_RUN : vectors;
        zn_vec s[4] = {{0}}, q[4] = {{0}};
        long i = first;
        for (; i + 4 <= last; i += 4)
            for (int j = 0; j < 4; j++) {
                const zn_vec d = zn_load(x + (i + j) * ZN_LANES) - about;
                s[j] += d;
                q[j] += d * d;
            }
        for (; i < last; i++) {
            const zn_vec d = zn_load(x + i * ZN_LANES) - about;
            s[0] += d;
            q[0] += d * d;
        }
        const zn_vec ss = (s[0] + s[1]) + (s[2] + s[3]), qq = (q[0] + q[1]) + (q[2] + q[3]);
        for (int l = 0; l < ZN_LANES; l++) sums[l] += ss[l], squares[l] += qq[l];
    }
}

/* Mean, and sum of squared differences from it, of n > 0 floats; where `blocked`, of each lane of n / ZN_LANES voxels. */
static void zn_chunk_moments(const float *x, long n, int blocked, double *means, double *squares) {
    const long vectors = n / ZN_LANES;
    double s[ZN_LANES] = {0}, q[ZN_LANES] = {0};
    if (blocked) {
        const zn_vec about = zn_about_mean(x, vectors);
        zn_sums(x, vectors, about, s, q);
        for (int l = 0; l < ZN_LANES; l++) {
            means[l] = (double)about[l] + s[l] / vectors;
            squares[l] = q[l] - s[l] * s[l] / vectors;
            if (squares[l] < 0) squares[l] = 0;
        }
        return;
    }
    float about = x[0];
    if (vectors) {
        const zn_vec lanes = zn_about_mean(x, vectors);
        about = 0;
        for (int l = 0; l < ZN_LANES; l++) about += lanes[l] * (1.0f / ZN_LANES);
        zn_sums(x, vectors, zn_splat(about), s, q);
    }
    double sum = 0, square = 0;
    for (int l = 0; l < ZN_LANES; l++) sum += s[l], square += q[l];
    for (long i = vectors * ZN_LANES; i < n; i++) {
        const double d = (double)x[i] - about;
        sum += d;
        square += d * d;
    }
    *means = about + sum / n;
    *squares = square - sum * sum / n;
    if (*squares < 0) *squares = 0;
}

/* Those of `count` sets together, `step` apart; each of `n` values, but the last of `n_last`. Into the first. */
static void zn_merge_moments(double *means, double *squares, long count, long step, double n, double n_last) {
    const double all = n * (count - 1) + n_last;
    double mean = 0, square = 0;
    for (long i = 0; i < count; i++) mean += (means[i * step] - means[0]) * ((i < count - 1 ? n : n_last) / all);
    mean += means[0];
    for (long i = 0; i < count; i++) {
        const double off = means[i * step] - mean;
        square += squares[i * step] + (i < count - 1 ? n : n_last) * off * off;
    }
    *means = mean;
    *squares = square;
}
#endif
