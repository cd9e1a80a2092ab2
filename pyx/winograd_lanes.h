/* Winograd's transforms of tiles, one SIMD lane a channel: straight-line codelets of 4, 6 and 8 points along an axis.
 *
 * The points are 0, +-p for one to three p, and infinity. With M(x) the product of (x - q) over the finite points, the
 * row of point q of the input transform holds the coefficients of M(x) / (x - q), and the last one those of M(x). Rows
 * of +p and -p share an even and an odd part. Row k of the output transform holds the k-th powers of the points; the
 * last one takes the point at infinity too. The kernels' transform (`znni.winograd_points`) carries the divisors. All
 * coefficients are exact in float32. */
#ifndef ZNNI_WINOGRAD_LANES_H
#define ZNNI_WINOGRAD_LANES_H
#include "activation.h"

/* Of 6 points: 0, +-5/8, +-3/2, infinity; of 8: 0, +-1/2, +-1, +-2, infinity; of 4: 0, +-1, infinity. */
static const float zn_wino_6[2] = {0.625f, 1.5f}, zn_wino_8[3] = {0.5f, 1.0f, 2.0f};

/* Vectors of a cache line: those that go together, so that what is scattered by points is scattered by lines. */
#define ZN_LINE_VECTORS (16 / ZN_LANES)

#define ZN_CODELET static inline __attribute__((always_inline)) void

ZN_CODELET zn_wino_input(const int n, const zn_vec *d, zn_vec *t) {
    if (n == 4) {
        t[0] = d[2] - d[0], t[1] = d[2] + d[1], t[2] = d[2] - d[1], t[3] = d[3] - d[1];
    } else if (n == 6) {
        const float a = zn_wino_6[0], b = zn_wino_6[1], aa = a * a, bb = b * b;
        t[0] = (d[4] - (aa + bb) * d[2]) + aa * bb * d[0];
        const zn_vec a_even = d[4] - bb * d[2], a_odd = d[3] - bb * d[1];
        const zn_vec b_even = d[4] - aa * d[2], b_odd = d[3] - aa * d[1];
        t[1] = a_even + a * a_odd, t[2] = a_even - a * a_odd;
        t[3] = b_even + b * b_odd, t[4] = b_even - b * b_odd;
        t[5] = (d[5] - (aa + bb) * d[3]) + aa * bb * d[1];
    } else {
        const float a = zn_wino_8[0], b = zn_wino_8[1], c = zn_wino_8[2], aa = a * a, bb = b * b, cc = c * c;
        const float one = aa + bb + cc, two = aa * bb + aa * cc + bb * cc, three = aa * bb * cc;
        t[0] = ((d[6] - one * d[4]) + two * d[2]) - three * d[0];
        const zn_vec a_even = (d[6] - (bb + cc) * d[4]) + bb * cc * d[2];
        const zn_vec a_odd = (d[5] - (bb + cc) * d[3]) + bb * cc * d[1];
        t[1] = a_even + a * a_odd, t[2] = a_even - a * a_odd;
        const zn_vec b_even = (d[6] - (aa + cc) * d[4]) + aa * cc * d[2];
        const zn_vec b_odd = (d[5] - (aa + cc) * d[3]) + aa * cc * d[1];
        t[3] = b_even + b * b_odd, t[4] = b_even - b * b_odd;
        const zn_vec c_even = (d[6] - (aa + bb) * d[4]) + aa * bb * d[2];
        const zn_vec c_odd = (d[5] - (aa + bb) * d[3]) + aa * bb * d[1];
        t[5] = c_even + c * c_odd, t[6] = c_even - c * c_odd;
        t[7] = ((d[7] - one * d[5]) + two * d[3]) - three * d[1];
    }
}

ZN_CODELET zn_wino_output(const int n, const int m, const zn_vec *t, zn_vec *y) {
    const int pairs = n / 2 - 1;
    zn_vec even[3], odd[3];
    float power[3] = {1.0f, 1.0f, 1.0f};
#pragma GCC unroll 3
    for (int p = 0; p < pairs; p++) even[p] = t[2 * p + 1] + t[2 * p + 2], odd[p] = t[2 * p + 1] - t[2 * p + 2];
#pragma GCC unroll 8
    for (int k = 0; k < m; k++) {
        const zn_vec *part = k % 2 ? odd : even;
        zn_vec sum = power[0] * part[0];
#pragma GCC unroll 3
        for (int p = 1; p < pairs; p++) sum += power[p] * part[p];
        if (k == 0) sum += t[0];
        if (k == m - 1) sum += t[n - 1];
        y[k] = sum;
#pragma GCC unroll 3
        for (int p = 0; p < pairs; p++) power[p] *= n == 4 ? 1.0f : n == 6 ? zn_wino_6[p] : zn_wino_8[p];
    }
}

/* An array of lines: points `step` floats apart, inner and outer neighbours `inner` and `outer` floats apart. */
typedef struct {
    long step, inner, outer;
} zn_wino_lies;

/* outer x inner lines. In place is fine. */
#define ZN_WINO_LINES(NAME, N, M, CODELET)                                                                           \
    static __attribute__((noinline)) void NAME(const float *from, zn_wino_lies f, float *to, zn_wino_lies t,         \
                                               int outer, int inner) {                                               \
        for (; outer > 0; outer--, from += f.outer, to += t.outer) {                                                 \
            const float *line = from;                                                                                \
            float *result = to;                                                                                      \
            for (int i = 0; i < inner; i++, line += f.inner, result += t.inner) {                                    \
                zn_vec in[N], out[M];                                                                                \
                _Pragma("GCC unroll 8") for (int j = 0; j < N; j++) {                                                \
                    in[j] = zn_load(line + j * f.step);                                                              \
                    ZN_IN_REGISTER(in[j]);                                                                           \
                }                                                                                                    \
                CODELET;                                                                                             \
                _Pragma("GCC unroll 8") for (int j = 0; j < M; j++) zn_store(result + j * t.step, out[j]);           \
            }                                                                                                        \
        }                                                                                                            \
    }
#define ZN_WINO_INPUT(N) ZN_WINO_LINES(zn_wino_input_##N, N, N, zn_wino_input(N, in, out))
#define ZN_WINO_OUTPUT(N, M) ZN_WINO_LINES(zn_wino_output_##N##_##M, N, M, zn_wino_output(N, M, in, out))
ZN_WINO_INPUT(4)
ZN_WINO_INPUT(6)
ZN_WINO_INPUT(8)
ZN_WINO_OUTPUT(4, 2)
ZN_WINO_OUTPUT(6, 4)
ZN_WINO_OUTPUT(6, 2)
ZN_WINO_OUTPUT(8, 6)
ZN_WINO_OUTPUT(8, 4)

typedef void zn_wino_lines(const float *, zn_wino_lies, float *, zn_wino_lies, int, int);

/* The transforms of an axis of n points and m outputs; NULL where it is not transformed (n = 1), or there is none. */
static inline zn_wino_lines *zn_wino_input_of(int n) {
    return n == 4 ? zn_wino_input_4 : n == 6 ? zn_wino_input_6 : n == 8 ? zn_wino_input_8 : NULL;
}
static inline zn_wino_lines *zn_wino_output_of(int n, int m) {
    if (n == 4) return m == 2 ? zn_wino_output_4_2 : NULL;
    if (n == 6) return m == 4 ? zn_wino_output_6_4 : m == 2 ? zn_wino_output_6_2 : NULL;
    if (n == 8) return m == 6 ? zn_wino_output_8_6 : m == 4 ? zn_wino_output_8_4 : NULL;
    return NULL;
}

typedef struct { /* one tile: along z, y, x */
    int n[3], m[3];
    zn_wino_lines *input[3], *output[3];
} zn_wino;

/* The other two axes, the inner one last. */
static const int zn_wino_others[3][2] = {{1, 2}, {0, 2}, {0, 1}};

static inline zn_wino_lies zn_wino_lying(const long *step, int axis) {
    return (zn_wino_lies){step[axis], step[zn_wino_others[axis][1]], step[zn_wino_others[axis][0]]};
}

/* A tile of vectors, `step` floats apart along z, y, x, to its points, `slot` floats apart. `buffer` holds prod(n)
 * vectors. */
static inline void zn_wino_forward(const zn_wino *w, const float *from, const long *step, float *buffer, float *points,
                                   long slot) {
    const int *n = w->n;
    const long within[3] = {n[1] * n[2] * ZN_LANES, n[2] * ZN_LANES, ZN_LANES};
    const long apart[3] = {n[1] * n[2] * slot, n[2] * slot, slot};
    const int last = n[0] > 1 ? 0 : n[1] > 1 ? 1 : 2;
    for (int axis = 2; axis >= last; axis--) {
        if (n[axis] == 1) continue;
        float *to = axis == last ? points : buffer;
        const long *to_step = axis == last ? apart : within;
        w->input[axis](from, zn_wino_lying(step, axis), to, zn_wino_lying(to_step, axis), n[zn_wino_others[axis][0]],
                       n[zn_wino_others[axis][1]]);
        from = to, step = to_step;
    }
}

/* Asks for the cache lines of a tile, but for those that its neighbour has, too. */
static inline void zn_wino_prefetch(const zn_wino *w, const float *from, const long *step) {
    for (int z = 0; z < w->n[0]; z++)
        for (int y = 0; y < w->n[1]; y++)
            for (long x = 0; x < w->m[2] * step[2]; x += 16)
                __builtin_prefetch(from + z * step[0] + y * step[1] + (w->n[2] - w->m[2]) * step[2] + x);
}

/* A row of `count` vectors, `step` floats apart, to one without gaps. What lies `ahead` floats on is asked for. */
static inline void zn_wino_copy(const float *from, long step, long count, long ahead, float *to) {
    for (long i = 0; i < count; i++) {
        __builtin_prefetch(from + i * step + ahead);
        zn_store(to + i * ZN_LANES, zn_load(from + i * step));
    }
}

/* The points of a tile to vectors of output, `to_step` floats apart along z, y, x. */
static inline void zn_wino_inverse(const zn_wino *w, const float *points, long slot, float *buffer, float *out,
                                   const long *out_step) {
    const int *n = w->n;
    const long within[3] = {n[1] * n[2] * ZN_LANES, n[2] * ZN_LANES, ZN_LANES};
    const long apart[3] = {n[1] * n[2] * slot, n[2] * slot, slot};
    const int last = n[2] > 1 ? 2 : n[1] > 1 ? 1 : 0;
    const float *from = points;
    const long *step = apart;
    int size[3] = {n[0], n[1], n[2]};
    for (int axis = 0; axis <= last; axis++) {
        if (n[axis] == 1) continue;
        float *to = axis == last ? out : buffer;
        const long *to_step = axis == last ? out_step : within;
        w->output[axis](from, zn_wino_lying(step, axis), to, zn_wino_lying(to_step, axis),
                        size[zn_wino_others[axis][0]], size[zn_wino_others[axis][1]]);
        size[axis] = w->m[axis];
        from = to, step = to_step;
    }
}

/* All ones in the first `count` lanes. */
static inline zn_ivec zn_first_lanes(long count) {
    zn_ivec mask = {0};
    for (int l = 0; l < ZN_LANES; l++) mask[l] = l < count ? -1 : 0;
    return mask;
}
/* A box of vectors, plus bias and through the activation, to vectors `to_step` floats apart; of lanes only the first
 * `channels` are not 0. Both steps are along z, y, x. */
static inline void zn_wino_finish(const float *from, const long *step, const int *count, long channels, zn_vec bias,
                                  int code, float a, float b, float *to, const long *to_step) {
    const zn_ivec mask = zn_first_lanes(channels);
    const zn_vec least = zn_splat(code == ZN_RELU ? 0.0f : -__builtin_inff());
    for (int z = 0; z < count[0]; z++)
        for (int y = 0; y < count[1]; y++) {
            const float *row = from + z * step[0] + y * step[1];
            float *result = to + z * to_step[0] + y * to_step[1];
            if (code == ZN_LINEAR || code == ZN_RELU)
                for (int x = 0; x < count[2]; x++) {
                    const zn_vec v = zn_load(row + x * step[2]) + bias;
                    zn_store(result + x * to_step[2], (zn_vec)((zn_ivec)zn_select(v < least, least, v) & mask));
                }
            else
                for (int x = 0; x < count[2]; x++) {
                    const zn_vec v = zn_activate(zn_load(row + x * step[2]) + bias, code, a, b);
                    zn_store(result + x * to_step[2], (zn_vec)((zn_ivec)v & mask));
                }
        }
}
#endif
