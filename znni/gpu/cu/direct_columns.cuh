/* Which output voxels a warp of a direct convolution computes, where their input begins, and where they are stored.
 *
 * Output voxels are numbered through the batch, z, y and x, so that tiles of them are full whatever the sizes are. A warp has
 * VOXELS of them, next to each other, and a lane every 32nd: its COLUMNS. The 32 columns of the lanes are runs of x in
 * memory, both where they are read and where they are written.
 *
 * MASK_BITS: 0 where nothing is padded; else 32 or 64 bits, in which a column keeps which of the kernel's planes, then rows,
 * then columns lie within the input from where it begins. The highest bit is never set. */
#ifndef ZN_DIRECT_COLUMNS_CUH
#define ZN_DIRECT_COLUMNS_CUH

#ifndef MASK_BITS
#define MASK_BITS 0
#endif
#define COLUMNS 4
#define VOXELS (32 * COLUMNS)

#if MASK_BITS > 32
typedef unsigned long long Mask;
#else
typedef unsigned Mask;
#endif

/* What both kernels are told of the layer. Steps are in bytes of the input, from one output voxel to the next; `origin` is
 * where the first one's input begins, below 0 where it is padded. `axes`: of z, y and x the input's size, then stride,
 * padding, dilation and size of the kernel. */
#define GEOMETRY                                                                                                       \
    long long voxels, int size_z, int size_y, int size_x, long long image_step, long long step_z, long long step_y,   \
        long long step_x, long long origin, const int *__restrict__ axes

/* Bytes, so that the address of a value is one sum of three. */
struct Columns {
    long long from[COLUMNS];
    Mask inside[COLUMNS];
};

/* Bits, from `bit` on, of the voxels of the kernel that lie within the input along an axis. */
__device__ __forceinline__ Mask inside_along(const int *axis, int place, int bit) {
    const int size = axis[0], start = place * axis[1] - axis[2], dilation = axis[3], kernel = axis[4];
    Mask bits = 0;
    for (int k = 0; k < kernel; ++k)
        if ((unsigned)(start + k * dilation) < (unsigned)size) bits |= (Mask)1 << (bit + k);
    return bits;
}

/* The columns of the warp whose voxels begin at `first`. Columns beyond the last voxel are like one before. */
__device__ __forceinline__ Columns columns_of(long long first, int lane, GEOMETRY) {
    unsigned long long number = (unsigned long long)min(first + lane, voxels - 1);
    unsigned long long rest = number / (unsigned)size_x;
    int at_x = (int)(number - rest * (unsigned)size_x);
    number = rest;
    rest = number / (unsigned)size_y;
    int at_y = (int)(number - rest * (unsigned)size_y);
    long long image = (long long)(rest / (unsigned)size_z);
    int at_z = (int)(rest - (unsigned long long)image * (unsigned)size_z);

    Columns columns;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        if (c > 0 && first + lane + 32 * c < voxels) {
            at_x += 32;
            while (at_x >= size_x) {
                at_x -= size_x;
                if (++at_y == size_y) {
                    at_y = 0;
                    if (++at_z == size_z) {
                        at_z = 0;
                        ++image;
                    }
                }
            }
        }
        columns.from[c] = origin + image * image_step + at_z * step_z + at_y * step_y + at_x * step_x;
        columns.inside[c] = 0;
#if MASK_BITS
        columns.inside[c] = inside_along(axes, at_z, 0) | inside_along(axes + 5, at_y, axes[4]) |
                            inside_along(axes + 10, at_x, axes[4] + axes[9]);
#endif
    }
    return columns;
}

__device__ __forceinline__ float value_at(const float *x, long long from, long long offset) {
    return *(const float *)((const char *)x + (from + offset));
}

/* Where in `out`, of `channels` channels, the columns lie in channel 0. */
struct Stores {
    long long at[COLUMNS];
    bool wanted[COLUMNS];
};

__device__ __forceinline__ Stores stores_of(long long first, int lane, int channels, long long voxels, long long volume) {
    const long long number = min(first + lane, voxels - 1);
    const long long image = (long long)((unsigned long long)number / (unsigned long long)volume);
    long long rest = number - image * volume, at = image * channels * volume + rest;
    Stores stores;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        stores.wanted[c] = first + lane + 32 * c < voxels;
        if (c > 0 && stores.wanted[c]) {
            at += 32;
            rest += 32;
            while (rest >= volume) {
                rest -= volume;
                at += (channels - 1) * volume;
            }
        }
        stores.at[c] = at;
    }
    return stores;
}

#endif
