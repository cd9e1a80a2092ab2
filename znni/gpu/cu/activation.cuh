/* Activations, fused into the stores of convolutions. Codes: znni.layers.Activation.CODES.
 *
 * ACTIVATION: the code of what `activate(x, a, b)` computes, for kernels compiled for one activation. Others are given the
 * code, and it is looked at once for several values. */
#ifndef ZN_ACTIVATION_CUH
#define ZN_ACTIVATION_CUH

#ifndef ACTIVATION
#define ACTIVATION 0
#endif

enum { ZN_LINEAR, ZN_RELU, ZN_LEAKY_RELU, ZN_ELU, ZN_TANH, ZN_SIGMOID, ZN_CLIP };

/* NaN stays NaN. */
__device__ __forceinline__ float activate(float x, int code, float a, float b) {
    switch (code) {
    case ZN_RELU: return x < 0.0f ? 0.0f : x;
    case ZN_LEAKY_RELU: return x < 0.0f ? a * x : x;
    case ZN_ELU: return x < 0.0f ? a * expm1f(x) : x;
    case ZN_TANH: return a * tanhf(b * x);
    case ZN_SIGMOID: return 1.0f / (1.0f + expf(-x));
    case ZN_CLIP: x = x < a ? a : x; return x > b ? b : x;
    default: return x;
    }
}

__device__ __forceinline__ float activate(float x, float a, float b) { return activate(x, ACTIVATION, a, b); }

template <int CODE, int N> __device__ __forceinline__ void activate_as(float (&values)[N], float a, float b) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate(values[i], CODE, a, b);
}

/* All of `values`, by a code that is the same for all threads. */
template <int N> __device__ __forceinline__ void activate(float (&values)[N], int code, float a, float b) {
    switch (code) {
    case ZN_RELU: activate_as<ZN_RELU>(values, a, b); break;
    case ZN_LEAKY_RELU: activate_as<ZN_LEAKY_RELU>(values, a, b); break;
    case ZN_ELU: activate_as<ZN_ELU>(values, a, b); break;
    case ZN_TANH: activate_as<ZN_TANH>(values, a, b); break;
    case ZN_SIGMOID: activate_as<ZN_SIGMOID>(values, a, b); break;
    case ZN_CLIP: activate_as<ZN_CLIP>(values, a, b); break;
    default: break;
    }
}

#endif
