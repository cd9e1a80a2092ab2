/* Transpositions of complex matrices: between the axes of a transform, so that its lines lie in memory as they are
 * transformed, with the zeros that pad them; and between the spectra of images and the matrices of frequencies. Lines of which
 * only a few points are not zero are transformed on the way.
 *
 * ROW_STEP: rows of the source become every so many-th element of the lines (the dilation of a kernel). */
#include "complex64.cuh"

#ifndef ROW_STEP
#define ROW_STEP 1
#endif

enum { TILE = 32, TILE_ROWS = 8 };

/* target[m][column][place] = source[m][row][column], conjugated where `sign` is -1, for place = offset + ROW_STEP * row, and
 * zero in the other places below `places`. Pitches and strides are elements from row to row and from matrix to matrix. Blocks
 * of 32 x 8 threads, one to each 32 x 32 tile of a target; those along its lines come first. */
extern "C" __global__ void transpose_lines(
    const complex64 *__restrict__ source, long long source_pitch, long long source_stride, complex64 *__restrict__ target,
    long long target_pitch, long long target_stride, int rows, int columns, int places, int offset, float sign) {
    /* one more a row: the lanes of a warp, going down a column, then find it in different banks */
    __shared__ complex64 tile[TILE][TILE + 1];
    const int along = (places + TILE - 1) / TILE, across = (columns + TILE - 1) / TILE;
    int block = blockIdx.x;
    const int first_place = block % along * TILE;
    block /= along;
    const int first_column = block % across * TILE;
    const long long matrix = block / across;
    source += matrix * source_stride;
    target += matrix * target_stride;

    const int column = first_column + threadIdx.x;
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS) {
        const int beyond = first_place + i - offset, row = beyond / ROW_STEP;
        complex64 value = {0.0f, 0.0f};
        if (beyond >= 0 && row * ROW_STEP == beyond && row < rows && column < columns)
            value = source[row * source_pitch + column];
        value.im *= sign;
        tile[i][threadIdx.x] = value;
    }
    __syncthreads();
    const int place = first_place + threadIdx.x;
    for (int i = threadIdx.y; i < TILE; i += TILE_ROWS)
        if (place < places && first_column + i < columns)
            target[(first_column + i) * target_pitch + place] = tile[threadIdx.x][i];
}

enum { SHORT_COLUMNS = 64, SHORT_THREADS = 256, MOST_TAPS = 16, MOST_POINTS = 1024 };

/* exp(-2 pi i j / n) for 0 <= j < n, from an angle of at most a quarter of pi. */
__device__ __forceinline__ complex64 root_of_unity(int j, int n) {
    const int octant = (int)(8LL * j / n), beyond = (int)(8LL * j - (long long)octant * n);
    float c, s;
    sincospif(0.25f * (float)(octant % 2 ? n - beyond : beyond) / (float)n, &s, &c);
    const bool swapped = (octant + 1) / 2 % 2 == 1; /* 1, 2, 5, 6 */
    const float re = swapped ? s : c, im = swapped ? c : s;
    return {octant >= 2 && octant < 6 ? -re : re, octant >= 4 ? im : -im};
}

/* target[m][column] = the transform of `points` points of source[m][tap][column], ROW_STEP apart from the first point on: a
 * polynomial in the root of unity of each frequency, by Horner's rule. At most 16 taps and 1024 points. Blocks of 256 threads,
 * one to every 64 columns of a matrix; what they write lies together. */
extern "C" __global__ void __launch_bounds__(SHORT_THREADS) transform_short_lines(
    const complex64 *__restrict__ source, complex64 *__restrict__ target, int taps, int columns, int points) {
    __shared__ complex64 roots[MOST_POINTS];
    __shared__ complex64 tile[MOST_TAPS][SHORT_COLUMNS];
    const int across = (columns + SHORT_COLUMNS - 1) / SHORT_COLUMNS;
    const long long matrix = blockIdx.x / across;
    const int first = blockIdx.x % across * SHORT_COLUMNS, width = min((int)SHORT_COLUMNS, columns - first);
    source += matrix * taps * columns + first;
    target += (matrix * columns + first) * points;

    for (int f = threadIdx.x; f < points; f += SHORT_THREADS)
        roots[f] = root_of_unity((int)((long long)f * ROW_STEP % points), points);
    for (int i = threadIdx.x; i < taps * SHORT_COLUMNS; i += SHORT_THREADS) {
        const int tap = i / SHORT_COLUMNS, column = i % SHORT_COLUMNS;
        if (column < width) tile[tap][column] = source[(long long)tap * columns + column];
    }
    __syncthreads();
    int column = threadIdx.x / points, f = threadIdx.x % points;
    const int columns_on = SHORT_THREADS / points, f_on = SHORT_THREADS % points;
    for (int i = threadIdx.x; i < width * points; i += SHORT_THREADS) {
        const complex64 root = roots[f];
        complex64 sum = tile[taps - 1][column];
        for (int tap = taps - 2; tap >= 0; --tap) {
            const complex64 value = tile[tap][column];
            const float re = value.re + sum.re * root.re - sum.im * root.im;
            sum.im = value.im + sum.re * root.im + sum.im * root.re;
            sum.re = re;
        }
        target[i] = sum;
        column += columns_on;
        f += f_on;
        if (f >= points) {
            f -= points;
            ++column;
        }
    }
}
