/* Real transforms of contiguous rows, 2 * ZN_LANES rows at a time, and the products of their spectra.
 *
 * A row's spectrum is xp floats of real parts and as many of imaginary parts, xp = zn_row_floats(n): points 0 .. n / 2, then
 * zeros up to whole vectors. Forward transforms are *twice* the unnormalised ones (zn_fft_split). */
#ifndef ZNNI_FFT_ROWS_H
#define ZNNI_FFT_ROWS_H
#include "activation.h"
#include "fft_lanes.h"

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
 * re + l * next, im + l * next. */
static void zn_rows_forward(const zn_fft *plan, const float *const *row, int have, int count, int dilation, float *re,
                            float *im, long next, float *scratch) {
    const int n = plan->n, half = n / 2 + 1;
    const long xp = zn_row_floats(n);
    zn_lines z, a, b, source;
    zn_rows_views(n, scratch, &z, &a, &b, &scratch);
    source = z;
    source.count = (count - 1) * dilation + 1;
    if (dilation > 1 || have < ZN_ROWS) memset(z.re, 0, source.count * ZN_ROWS * sizeof(float));
    if (have == ZN_ROWS)
        for (int i = 0; i < count; i++)
            for (int l = 0; l < ZN_ROWS; l++) z.re[i * dilation * ZN_ROWS + l] = row[l][i];
    else
        for (int l = 0; l < have; l++)
            for (int i = 0; i < count; i++) z.re[i * dilation * ZN_ROWS + l] = row[l][i];
    zn_fft_lines(plan, &source, &z, 1, scratch);
    zn_fft_split(n, &z, &a, &b);
    for (int l = 0; l < have; l++) {
        const zn_lines *s = l < ZN_LANES ? &a : &b;
        const float *sr = s->re + l % ZN_LANES, *si = s->im + l % ZN_LANES;
        float *tr = re + l * next, *ti = im + l * next;
        for (int k = 0; k < half; k++) tr[k] = sr[k * ZN_ROWS], ti[k] = si[k * ZN_ROWS];
        for (long k = half; k < xp; k++) tr[k] = ti[k] = 0.0f;
    }
}

/* Spectra at re + l * next, im + l * next back to the first `count` floats of each row, times `scale`, then bias and
 * activation. */
static void zn_rows_inverse(const zn_fft *plan, const float *re, const float *im, long next, float *const *row, int have,
                            int count, float scale, float bias, int code, float pa, float pb, float *scratch) {
    const int n = plan->n, half = n / 2 + 1;
    zn_lines z, a, b, swapped, target;
    zn_rows_views(n, scratch, &z, &a, &b, &scratch);
    if (have < ZN_ROWS) memset(a.re, 0, 2 * half * ZN_ROWS * sizeof(float));
    for (int l = 0; l < have; l++) {
        const zn_lines *s = l < ZN_LANES ? &a : &b;
        float *tr = s->re + l % ZN_LANES, *ti = s->im + l % ZN_LANES;
        const float *sr = re + l * next, *si = im + l * next;
        for (int k = 0; k < half; k++) tr[k * ZN_ROWS] = sr[k], ti[k * ZN_ROWS] = si[k];
    }
    zn_fft_merge(n, &a, &b, &z);
    swapped = zn_lines_swap(z);
    target = swapped;
    target.count = count;
    zn_fft_lines(plan, &swapped, &target, 1, scratch);
    for (int l = 0; l < have; l++) {
        float *out = row[l];
        for (int i = 0; i < count; i++) out[i] = z.re[i * ZN_ROWS + l] * scale;
        zn_bias_activate(out, count, bias, code, pa, pb);
    }
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
