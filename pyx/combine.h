/* Voxels of several tensors to one: sums, products, a scale and shift for each channel, an activation at the end.
 *
 * Tensors are images of `run` floats: channels of plain ones, blocks of ZN_LANES channels of blocked ones. Factors are one
 * for each channel. Codes of activations: activation.h. */
#ifndef ZNNI_COMBINE_H
#define ZNNI_COMBINE_H
#include "activation.h"
#include "streaming.h"

/* What is activated: scale (x1 + x2 + ..) + bias; x1 x2; x1, or scale x1 where it is negative; scale (x1 - shift) + bias. */
enum { ZN_SUM, ZN_PRODUCT, ZN_SLOPE, ZN_CENTRED };
enum { ZN_SOURCES = 16 };

typedef struct {
    const float *x[ZN_SOURCES];
    float *out;
    long count;                        /* arrays that are read */
    long run, lanes, channels;         /* floats of an image; 1 or ZN_LANES; channels of a batch element */
    const float *scale, *bias, *shift; /* `lanes` for each image; absent (NULL): 1, 0, 0 */
    long period;                       /* images after which these repeat */
    int op, code;
    float a, b;
    int stream;                        /* the result is too large to stay in the caches */
} zn_combination;

typedef struct {
    zn_vec scale, bias, shift;
    zn_ivec mask; /* lanes that are channels */
} zn_factors;

ZN_INLINE zn_vec zn_factor(const float *table, long at, long lanes, float absent) {
    if (!table) return zn_splat(absent);
    return lanes == 1 ? zn_splat(table[at]) : zn_load(table + at);
}

ZN_INLINE zn_vec zn_combined(const float *const *x, long i, const long count, const int op, const int code, float a,
                             float b, const zn_factors *f) {
    zn_vec v = zn_load(x[0] + i);
    if (op == ZN_SUM) {
        for (long s = 1; s < count; s++) v += zn_load(x[s] + i);
        v = v * f->scale + f->bias;
    } else if (op == ZN_PRODUCT) {
        v *= zn_load(x[1] + i);
    } else if (op == ZN_SLOPE) {
        v = zn_select(v < zn_splat(0.0f), v * f->scale, v);
    } else {
        v = (v - f->shift) * f->scale + f->bias;
    }
    return (zn_vec)((zn_ivec)zn_activate(v, code, a, b) & f->mask);
}

/* Fewer floats than a vector has: through copies, since what lies behind them may belong to nobody. */
static void zn_combine_few(const zn_combination *c, const float *const *x, float *out, long n, const zn_factors *f) {
    float few[ZN_SOURCES][ZN_LANES] = {{0}}, result[ZN_LANES];
    const float *from[ZN_SOURCES];
    for (long s = 0; s < c->count; s++) {
        memcpy(few[s], x[s], n * sizeof(float));
        from[s] = few[s];
    }
    zn_store(result, zn_combined(from, 0, c->count, c->op, c->code, c->a, c->b, f));
    memcpy(out, result, n * sizeof(float));
}

ZN_INLINE void zn_combine_as(const zn_combination *c, const float *const *x, float *out, long n, const zn_factors *f,
                             const long count, const int op, const int code) {
    const float a = c->a, b = c->b;
    if (c->stream)
        for (long i = 0; i < n; i += ZN_LANES) zn_stream(out + i, zn_combined(x, i, count, op, code, a, b, f));
    else
        for (long i = 0; i < n; i += ZN_LANES) zn_store(out + i, zn_combined(x, i, count, op, code, a, b, f));
}

#define ZN_COMBINE_CODES(COUNT, OP)                                                               \
    do {                                                                                          \
        if (c->code == ZN_LINEAR) zn_combine_as(c, x, out, n, f, COUNT, OP, ZN_LINEAR);           \
        else if (c->code == ZN_RELU) zn_combine_as(c, x, out, n, f, COUNT, OP, ZN_RELU);          \
        else zn_combine_as(c, x, out, n, f, COUNT, OP, c->code);                                  \
    } while (0)

/* `n` floats, a multiple of ZN_LANES. */
static void zn_combine_vectors(const zn_combination *c, const float *const *x, float *out, long n, const zn_factors *f) {
    if (c->op == ZN_PRODUCT) ZN_COMBINE_CODES(2, ZN_PRODUCT);
    else if (c->op == ZN_SLOPE) ZN_COMBINE_CODES(1, ZN_SLOPE);
    else if (c->op == ZN_CENTRED) ZN_COMBINE_CODES(1, ZN_CENTRED);
    else if (c->count == 1) ZN_COMBINE_CODES(1, ZN_SUM);
    else if (c->count == 2) ZN_COMBINE_CODES(2, ZN_SUM);
    else ZN_COMBINE_CODES(c->count, ZN_SUM);
}

/* Floats `first` to `last` of an image; of a blocked one, whole voxels. */
static void zn_combine(const zn_combination *c, long image, long first, long last) {
    const long at = image % c->period * c->lanes, units = (c->channels + c->lanes - 1) / c->lanes;
    zn_factors f = {zn_factor(c->scale, at, c->lanes, 1.0f), zn_factor(c->bias, at, c->lanes, 0.0f),
                    zn_factor(c->shift, at, c->lanes, 0.0f), ~(zn_ivec){0}};
    if (c->lanes > 1) {
        zn_ivec index;
        for (int l = 0; l < ZN_LANES; l++) index[l] = l;
        f.mask = index < (int32_t)(c->channels - image % units * c->lanes);
    }
    const float *x[ZN_SOURCES];
    float *out = c->out + image * c->run + first;
    for (long s = 0; s < c->count; s++) x[s] = c->x[s] + image * c->run + first;
    long n = last - first;
    if (c->stream && c->lanes == 1) { /* up to where lines can be written as a whole */
        for (long left = zn_to_line(out) < n ? zn_to_line(out) : n, few; left > 0; left -= few) {
            few = left < ZN_LANES ? left : ZN_LANES;
            zn_combine_few(c, x, out, few, &f);
            for (long s = 0; s < c->count; s++) x[s] += few;
            out += few, n -= few;
        }
    }
    const long whole = n / ZN_LANES * ZN_LANES;
    zn_combine_vectors(c, x, out, whole, &f);
    if (n > whole) {
        for (long s = 0; s < c->count; s++) x[s] += whole;
        zn_combine_few(c, x, out + whole, n - whole, &f);
    }
    if (c->stream) zn_stream_end();
}

/* Whether to write past the caches: a large result, whose voxels, where it is blocked, are aligned to vectors. */
static int zn_combine_streams(const float *out, long floats, long lanes) {
    return floats * (long)sizeof(float) >= ZN_STREAM_BYTES && (lanes == 1 || (uintptr_t)out % sizeof(zn_vec) == 0);
}
#endif
