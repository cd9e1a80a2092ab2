/* A complex number as cuFFT and cuBLAS store it; aligned, so that it is moved by one instruction. */
#ifndef ZNNI_COMPLEX64_CUH
#define ZNNI_COMPLEX64_CUH

struct alignas(8) complex64 {
    float re, im;
};

#endif
