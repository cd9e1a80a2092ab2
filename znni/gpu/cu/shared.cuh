/* Shared memory whose size the launch gives.
 *
 * ZN_SHARED(float, tile); within a kernel declares the block's array `tile`, of as many bytes as the launch says. There is
 * one a kernel, and one type a name in a file.
 */
#ifndef ZN_SHARED_CUH
#define ZN_SHARED_CUH

#ifndef ZN_SHARED
#define ZN_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

#endif
