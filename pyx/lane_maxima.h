/* Maxima of rows of vectors of channels, in blocked arrays. */
#ifndef ZNNI_LANE_MAXIMA_H
#define ZNNI_LANE_MAXIMA_H
#include "maximum.h"
#include "streaming.h"

/* Vectors head <= i < body of a row of n fill cache lines; those at its ends share theirs with other rows. */
typedef struct { long head, body; } zn_whole_lines;

ZN_INLINE zn_whole_lines zn_lines_of(const float *dst, long n) {
    const long head = zn_to_line(dst) / ZN_LANES, per_line = ZN_LINE / ZN_LANES;
    return (zn_whole_lines){head, n - (n - head) % per_line};
}
ZN_INLINE void zn_put(float *dst, long i, zn_vec v, zn_whole_lines lines, const int stream) {
    if (stream && i >= lines.head && i < lines.body) zn_stream(dst + i * ZN_LANES, v);
    else zn_store(dst + i * ZN_LANES, v);
}

ZN_INLINE void zn_max_lanes_inline(float *dst, const float *src, long n, long step, const long taps, long apart,
                                   const int stream) {
    const zn_whole_lines lines = zn_lines_of(dst, n);
    for (long i = 0; i < n; i++) {
        const float *from = src + i * step * ZN_LANES;
        zn_vec m = zn_load(from);
        for (long k = 1; k < taps; k++) m = zn_maximum(m, zn_load(from + k * apart * ZN_LANES));
        zn_put(dst, i, m, lines, stream);
    }
}

/* dst[i] = max over k < taps of src[step i + apart k], for i < n, all vectors; dst is aligned to one where `stream`. */
static void zn_max_lanes(float *dst, const float *src, long n, long step, long taps, long apart, int stream) {
    if (taps == 2 && stream) zn_max_lanes_inline(dst, src, n, step, 2, apart, 1);
    else if (taps == 2) zn_max_lanes_inline(dst, src, n, step, 2, apart, 0);
    else zn_max_lanes_inline(dst, src, n, step, taps, apart, stream);
}

ZN_INLINE zn_vec zn_max_column(float *kept, const float *a, const float *b, long i) {
    const zn_vec c = zn_maximum(zn_load(a + i * ZN_LANES), zn_load(b + i * ZN_LANES));
    const zn_vec m = zn_maximum(zn_load(kept + i * ZN_LANES), c);
    zn_store(kept + i * ZN_LANES, c);
    return m;
}
ZN_INLINE void zn_max_cubes_inline(float *even, float *odd, float *kept, const float *a, const float *b, long n,
                                   const int stream) {
    const zn_whole_lines even_lines = zn_lines_of(even, n), odd_lines = zn_lines_of(odd, n);
    zn_vec m = zn_max_column(kept, a, b, 0);
    for (long i = 0; i < n; i++) {
        const zn_vec next = zn_max_column(kept, a, b, 2 * i + 1);
        zn_put(even, i, zn_maximum(m, next), even_lines, stream);
        m = zn_max_column(kept, a, b, 2 * i + 2);
        zn_put(odd, i, zn_maximum(next, m), odd_lines, stream);
    }
}

/* Maxima of windows of 2 x 2 x 2 to two fragments, n vectors each, in one pass over the 2 n + 1 of row a and of the row b
 * below it; kept[i] is the max of the rows before them, and becomes that of a and b. */
static void zn_max_cubes(float *even, float *odd, float *kept, const float *a, const float *b, long n, int stream) {
    if (stream) zn_max_cubes_inline(even, odd, kept, a, b, n, 1);
    else zn_max_cubes_inline(even, odd, kept, a, b, n, 0);
}
#endif
