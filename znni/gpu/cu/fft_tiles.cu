/* What goes into the transforms of tiles of an image, and what comes out of them. A tile may be the whole image. Real rows have
 * room for their spectra: they are transformed in place.
 *
 * ACTIVATION: code of the activation that is fused into the store.
 *
 * Blocks of (8, 32), (16, 16) or (32, 8) threads, the first of them along x; grid x: planes of all tiles and channels, grid
 * y: `rows_each` rows of a plane. */
#include "activation.cuh"

/* target[i][z][y][x]: the tile of channel (first + i) % channels whose number is first_tile + (first + i) / channels; tiles
 * are counted along x, y, z, then the batch. Planes and rows of a tile are loaded from its `from` on, which is also where tile
 * 0 begins in the image (below 0: in the padding); further tiles lie `step` on. Zero outside of the image. */
extern "C" __global__ void gather_tiles(
    const float *__restrict__ x, float *__restrict__ target, int first, int first_tile, int channels, int size_z, int size_y,
    int size_x, int tiles_z, int tiles_y, int tiles_x, int step_z, int step_y, int step_x, int from_z, int from_y, int from_x,
    int planes, int rows, int points, int pitch, int rows_each) {
    const int i = blockIdx.x / planes, plane = blockIdx.x % planes;
    int tile = first_tile + (first + i) / channels;
    const int channel = (first + i) % channels;
    const int start_x = tile % tiles_x * step_x + from_x;
    tile /= tiles_x;
    const int start_y = tile % tiles_y * step_y + from_y;
    tile /= tiles_y;
    const int z = tile % tiles_z * step_z + from_z + plane;
    const long long image = (long long)(tile / tiles_z) * channels + channel;
    const bool inside = z >= 0 && z < size_z;
    const float *source = x + (image * size_z + (inside ? z : 0)) * size_y * size_x;
    target += (long long)blockIdx.x * rows * pitch;

    const int last = min(rows, ((int)blockIdx.y + 1) * rows_each);
    for (int row = blockIdx.y * rows_each + threadIdx.y; row < last; row += blockDim.y) {
        const int y = start_y + row;
        const bool row_inside = inside && y >= 0 && y < size_y;
        for (int point = threadIdx.x; point < points; point += blockDim.x) {
            const int at = start_x + point;
            float value = 0.0f;
            if (row_inside && at >= 0 && at < size_x) value = source[(long long)y * size_x + at];
            target[(long long)row * pitch + point] = value;
        }
    }
}

/* target[i]: kernel first + i, its taps `dilation` apart from the origin on, zero elsewhere. */
extern "C" __global__ void place_kernels(
    const float *__restrict__ weight, float *__restrict__ target, int first, int kernel_z, int kernel_y, int kernel_x,
    int dilation_z, int dilation_y, int dilation_x, int planes, int rows, int points, int pitch, int rows_each) {
    const int i = blockIdx.x / planes, plane = blockIdx.x % planes, z = plane / dilation_z;
    const bool inside = z * dilation_z == plane && z < kernel_z;
    const float *source = weight + ((long long)(first + i) * kernel_z + (inside ? z : 0)) * kernel_y * kernel_x;
    target += (long long)blockIdx.x * rows * pitch;

    const int last = min(rows, ((int)blockIdx.y + 1) * rows_each);
    for (int row = blockIdx.y * rows_each + threadIdx.y; row < last; row += blockDim.y) {
        const int y = row / dilation_y;
        const bool row_inside = inside && y * dilation_y == row && y < kernel_y;
        for (int point = threadIdx.x; point < points; point += blockDim.x) {
            float value = 0.0f;
            if (row_inside) { /* few rows are */
                const int tap = point / dilation_x;
                if (tap * dilation_x == point && tap < kernel_x) value = source[y * kernel_x + tap];
            }
            target[(long long)row * pitch + point] = value;
        }
    }
}

/* out = activation(scale * result + bias), for output channels from first_channel on, and of each tile, numbered as above with
 * as many channels as are stored at a time, the planes, rows and voxels that it is to give. */
extern "C" __global__ void store_tiles(
    const float *__restrict__ result, const float *__restrict__ bias, float *__restrict__ out, int first, int first_tile,
    int channels, int first_channel, int out_channels, int size_z, int size_y, int size_x, int tiles_z, int tiles_y,
    int tiles_x, int step_z, int step_y, int step_x, int held_planes, int held_rows, int pitch, int rows_each, float scale,
    float a, float b) {
    const int planes = min(step_z, size_z), rows = min(step_y, size_y), points = min(step_x, size_x);
    const int i = blockIdx.x / planes, plane = blockIdx.x % planes;
    int tile = first_tile + (first + i) / channels;
    const int channel = first_channel + (first + i) % channels;
    const int start_x = tile % tiles_x * step_x;
    tile /= tiles_x;
    const int start_y = tile % tiles_y * step_y;
    tile /= tiles_y;
    const int z = tile % tiles_z * step_z + plane;
    if (z >= size_z) return;
    const long long image = (long long)(tile / tiles_z) * out_channels + channel;
    const float shift = bias[channel];
    const float *source = result + ((long long)i * held_planes + plane) * held_rows * pitch;
    out += (image * size_z + z) * size_y * size_x;

    const int last = min(min(rows, size_y - start_y), ((int)blockIdx.y + 1) * rows_each);
    const int end = min(points, size_x - start_x);
    for (int row = blockIdx.y * rows_each + threadIdx.y; row < last; row += blockDim.y)
        for (int point = threadIdx.x; point < end; point += blockDim.x) {
            const float value = scale * source[(long long)row * pitch + point] + shift;
            out[(long long)(start_y + row) * size_x + start_x + point] = activate(value, a, b);
        }
}
