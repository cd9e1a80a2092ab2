/* Bias and activation, fused into the store of a convolution. Codes: znni.layers.Activation.CODES.
 * exp: Cody-Waite reduction and the degree-5 polynomial of Cephes' expf (S. Moshier), within 2 units in the last place. */
#ifndef ZNNI_ACTIVATION_H
#define ZNNI_ACTIVATION_H
#include "simd.h"

enum { ZN_LINEAR, ZN_RELU, ZN_LEAKY_RELU, ZN_ELU, ZN_TANH, ZN_SIGMOID, ZN_CLIP };

/* exp(x) = scale * (1 + q): q without the cancellation that exp(x) - 1 would have near 0. NaN stays NaN. */
static inline zn_vec zn_exp_parts(zn_vec x, zn_vec *scale) {
    const zn_vec lo = zn_splat(-87.33654f), hi = zn_splat(88.0f), magic = zn_splat(12582912.0f);
    x = zn_select(x < lo, lo, x);
    x = zn_select(x > hi, hi, x);
    zn_vec n = (x * 1.44269504f + magic) - magic;
    zn_vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    zn_vec p = zn_splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *scale = (zn_vec)((__builtin_convertvector(n, zn_ivec) + 127) << 23);
    return p * r * r + r;
}
static inline zn_vec zn_exp(zn_vec x) {
    zn_vec scale, q = zn_exp_parts(x, &scale);
    return scale * q + scale;
}
static inline zn_vec zn_expm1(zn_vec x) {
    zn_vec scale, q = zn_exp_parts(x, &scale);
    return scale * q + (scale - 1.0f);
}
static inline zn_vec zn_tanh(zn_vec x) { /* expm1(2x) / (expm1(2x) + 2), on -|x| so that nothing overflows */
    const zn_ivec sign_bit = (zn_ivec){0} + INT32_MIN;
    zn_vec e = zn_expm1((zn_vec)((zn_ivec)(x + x) | sign_bit));
    return (zn_vec)((zn_ivec)(-e / (e + 2.0f)) | ((zn_ivec)x & sign_bit));
}

static inline __attribute__((always_inline)) zn_vec zn_activate(zn_vec x, int code, float a, float b) {
    const zn_vec zero = zn_splat(0.0f);
    switch (code) {
    case ZN_RELU: return zn_select(x < zero, zero, x);
    case ZN_LEAKY_RELU: return zn_select(x < zero, x * a, x);
    case ZN_ELU: return zn_select(x < zero, zn_expm1(x) * a, x);
    case ZN_TANH: return zn_tanh(x * b) * a;
    case ZN_SIGMOID: return 1.0f / (1.0f + zn_exp(-x));
    case ZN_CLIP: x = zn_select(x < zn_splat(a), zn_splat(a), x); return zn_select(x > zn_splat(b), zn_splat(b), x);
    default: return x;
    }
}

/* y[i] = activation(y[i] + bias) for a run of floats. */
static inline void zn_bias_activate(float *y, long n, float bias, int code, float a, float b) {
    long i = 0;
    for (; i + ZN_LANES <= n; i += ZN_LANES) zn_store(y + i, zn_activate(zn_load(y + i) + bias, code, a, b));
    if (i < n) {
        float tail[ZN_LANES] = {0};
        memcpy(tail, y + i, (n - i) * sizeof(float));
        zn_store(tail, zn_activate(zn_load(tail) + bias, code, a, b));
        memcpy(y + i, tail, (n - i) * sizeof(float));
    }
}
#endif
