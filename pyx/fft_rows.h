/* Real transforms of contiguous rows, 2 * ZN_LANES rows at a time, and the products of their spectra.
 *
 * A row's spectrum is xp floats of real parts and as many of imaginary parts, xp = zn_row_floats(n): points 0 .. n / 2, then
 * zeros up to whole vectors. Forward transforms are *twice* the unnormalised ones (zn_fft_split). */
#ifndef ZNNI_FFT_ROWS_H
#define ZNNI_FFT_ROWS_H
#include "fft_lanes.h"
#include "lane_rows.h"

#define ZN_ROWS (2 * ZN_LANES)

static inline long zn_row_floats(int n) { return (n / 2 + 1 + ZN_LANES - 1) / ZN_LANES * ZN_LANES; }

/* Floats of scratch for both functions below: Z, A and B, and what the transform itself wants. */
static inline long zn_rows_scratch_floats(int n) { return (n + 2L * (n / 2 + 1)) * ZN_ROWS + zn_fft_scratch_floats(n); }

static inline void zn_rows_views(int n, float *scratch, zn_lines *z, zn_lines *a, zn_lines *b, float **rest) {
    float *pa = scratch + (long)n * ZN_ROWS, *pb = pa + (n / 2 + 1L) * ZN_ROWS;
    *z = zn_lines_at(scratch, scratch + ZN_LANES, ZN_ROWS, 0, n);
    *a = zn_lines_at(pa, pa + ZN_LANES, ZN_ROWS, 0, n / 2 + 1);
    *b = zn_lines_at(pb, pb + ZN_LANES, ZN_ROWS, 0, n / 2 + 1);
    *rest = pb + (n / 2 + 1L) * ZN_ROWS;
}

/* Rows row[0 .. have-1] of `count` floats each, taken as points 0, dilation, 2 dilation .. of n, into spectra at
 * re + l * next, im + l * next. Rows ascend in memory, and the array that they lie in ends at `end`. */
static void zn_rows_forward(const zn_fft *plan, const float **row, int have, const float *end, int count, int dilation,
                            float *re, float *im, long next, float *scratch) {
    const int n = plan->n, half = n / 2 + 1;
    zn_lines z, a, b, source;
    zn_rows_views(n, scratch, &z, &a, &b, &scratch);
    source = z;
    source.count = (count - 1) * dilation + 1;
    for (int l = have; l < ZN_ROWS; l++) row[l] = row[0]; /* lanes that nobody will ask for */
    if (dilation > 1) memset(z.re, 0, source.count * ZN_ROWS * sizeof(float));
    zn_rows_load(row, row[have - 1], 0, end, count, 1, z.re, (long)dilation * ZN_ROWS);
    zn_rows_load(row + ZN_LANES, row[have - 1], 0, end, count, 1, z.im, (long)dilation * ZN_ROWS);
    zn_fft_lines(plan, &source, &z, 1, scratch);
    zn_fft_split(n, &z, &a, &b);
    for (int part = 0; part < 4; part++) { /* real and imaginary parts of a, then of b */
        const float *from = (part < 2 ? a.re : b.re) + part % 2 * ZN_LANES;
        const int first = part / 2 * ZN_LANES, some = have - first < ZN_LANES ? have - first : ZN_LANES;
        float *to = (part % 2 ? im : re) + first * next;
        for (int k = 0; k < half; k += ZN_LANES) {
            zn_vec v[ZN_LANES];
            for (int i = 0; i < ZN_LANES; i++) v[i] = k + i < half ? zn_load(from + (k + i) * ZN_ROWS) : zn_splat(0.0f);
            zn_transpose(v);
            for (int l = 0; l < some; l++) zn_store(to + l * next + k, v[l]);
        }
    }
}

/* Spectra at re + l * next, im + l * next back to the first `count` floats of each row, times `scale`, then bias and
 * activation. */
static void zn_rows_inverse(const zn_fft *plan, const float *re, const float *im, long next, float *const *row, int have,
                            int count, float scale, float bias, int code, float pa, float pb, float *scratch) {
    const int n = plan->n, half = n / 2 + 1;
    const zn_vec zero = zn_splat(0.0f);
    int first[ZN_LANES] = {0}, last[2][ZN_LANES];
    zn_lines z, a, b, swapped, target;
    zn_rows_views(n, scratch, &z, &a, &b, &scratch);
    for (int part = 0; part < 4; part++) {
        float *to = (part < 2 ? a.re : b.re) + part % 2 * ZN_LANES;
        const int at = part / 2 * ZN_LANES, some = have - at < ZN_LANES ? have - at : ZN_LANES;
        const float *from = (part % 2 ? im : re) + at * next;
        for (int k = 0; k < half; k += ZN_LANES) {
            zn_vec v[ZN_LANES];
            for (int l = 0; l < ZN_LANES; l++) v[l] = l < some ? zn_load(from + l * next + k) * scale : zero;
            zn_transpose(v);
            for (int i = 0; i < ZN_LANES && k + i < half; i++) zn_store(to + (k + i) * ZN_ROWS, v[i]);
        }
    }
    zn_fft_merge(n, &a, &b, &z);
    swapped = zn_lines_swap(z);
    target = swapped;
    target.count = count;
    zn_fft_lines(plan, &swapped, &target, 1, scratch);
    for (int l = 0; l < ZN_ROWS; l++) last[l / ZN_LANES][l % ZN_LANES] = l < have ? count : 0;
    zn_rows_store(z.re, ZN_ROWS, count, zero + bias, code, pa, pb, row, 0, 1, first, last[0]);
    if (have > ZN_LANES)
        zn_rows_store(z.im, ZN_ROWS, count, zero + bias, code, pa, pb, row + ZN_LANES, 0, 1, first, last[1]);
}

/* s += x * conj(k), n complex floats in planes; `first` writes instead of adding. */
static inline void zn_multiply_conj(const float *restrict xr, const float *restrict xi, const float *restrict kr,
                                    const float *restrict ki, float *restrict sr, float *restrict si, long n, int first) {
    if (first)
        for (long i = 0; i < n; i++) {
            sr[i] = xr[i] * kr[i] + xi[i] * ki[i];
            si[i] = xi[i] * kr[i] - xr[i] * ki[i];
        }
    else
        for (long i = 0; i < n; i++) {
            sr[i] += xr[i] * kr[i] + xi[i] * ki[i];
            si[i] += xi[i] * kr[i] - xr[i] * ki[i];
        }
}
#endif
